"""Packed models: every bit back, sizes known beforehand, and files that were changed refused by name."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.compression.bit_packing import pack_bits, unpack_bits
from sightline.compression.packed_file import packed_size, read_packed, tensor_specs, write_packed
from sightline.compression.packed_tensors import PackedTensorSpec, planned_tensor_spec
from sightline.compression.parametrised import dense_state_dict, quantised_weights
from sightline.compression.ratios import compression_ratios
from sightline.contract import regular_files
from sightline.contract.errors import CheckpointError, UserError
from sightline.runs.trained_weights import evaluated_sha256
from tests.compression.drawn_weights import random_layers
from tests.compression.policies import quantise

META = {"model": {"name": "net", "width": 4}, "class_names": ["a", "ü"], "metrics": {"accuracy": 0.875}}


def bits_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert bits_of(found[name]) == bits_of(value), name


# --- bits ------------------------------------------------------------------------------------------------------------


def test_codes_of_three_bits_by_hand() -> None:
    assert pack_bits(np.arange(8, dtype=np.uint8), 3).hex(" ") == "88 c6 fa"


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_come_back(bits: int) -> None:
    draw = np.random.default_rng(bits)
    for count in range(1001):
        codes = draw.integers(0, 2**bits, count).astype(np.uint8)
        data = pack_bits(codes, bits)
        assert len(data) == math.ceil(count * bits / 8)
        assert np.array_equal(unpack_bits(data, count, bits), codes)
        if count % 97 == 1:  # the definition, bit by bit
            stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
            powers = 2 ** np.arange(bits)
            assert np.array_equal(stream[: count * bits].reshape(-1, bits) @ powers, codes)
            assert not stream[count * bits :].any()


# --- files -----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Of every kind of tensor: codes of both kinds, shared, small, empty, whole numbers, half, a channel axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(16, 8, 3)
        self.b = nn.Linear(40, 30)
        self.c = nn.Linear(40, 30, bias=False)
        self.d = nn.Linear(9, 3)
        self.e = nn.Linear(30, 40)
        self.tied = nn.Linear(30, 40)
        self.tied.weight = self.e.weight
        self.norm = nn.BatchNorm1d(5)
        self.half = nn.Linear(20, 20)
        self.wide = nn.Linear(20, 20)
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("mask", torch.tensor([True, False]))


POLICY = {
    "a.weight": {"kind": "codebook", "bits": 3},
    "b.weight": {"kind": "codebook", "bits": 2, "per_channel": True},
    "c.weight": {"kind": "linear", "bits": 5, "per_channel": True},
    "d.weight": {"kind": "codebook", "bits": 8},
    "e.weight": {"kind": "linear", "bits": 3},
    "half.weight": {"kind": "fp16"},
    "wide.weight": {"kind": "codebook", "bits": 2},
    "norm.weight": {"kind": "fp32"},
}


def net() -> Net:
    torch.manual_seed(3)
    model = Net()
    with torch.no_grad():
        model.wide.weight.mul_(1e6)
    quantise(model, POLICY)
    return model


def test_a_model_comes_back_bit_by_bit(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "model.slq"
    entries, tied = tensor_specs(model)
    size = write_packed(path, model, META)
    assert size == path.stat().st_size == packed_size(entries, META, tied=tied)
    packed = read_packed(path)
    assert packed.meta == META
    assert packed.entries == entries
    assert_same_bits(packed.state, dense_state_dict(model))
    kinds = {
        entry.name: (entry.kind, entry.bits, entry.num_centroids, entry.groups, entry.codebook_dtype)
        for entry in entries
    }
    assert kinds["a.weight"] == ("kq", 3, 8, 1, "f16")
    assert kinds["b.weight"] == ("kq", 2, 4, 30, "f16")
    assert kinds["c.weight"] == ("lq", 5, 31, 30, "f32")
    assert kinds["d.weight"][0] == "f16"  # 27 weights: a codebook would be larger
    assert kinds["wide.weight"] == ("kq", 2, 4, 1, "f32")
    assert kinds["half.weight"][0] == "f16"
    assert (kinds["norm.num_batches_tracked"][0], kinds["mask"][0], kinds["b.bias"][0]) == ("i64", "bool", "f32")
    assert tied == {"tied.weight": "e.weight"}
    assert packed.state["tied.weight"] is packed.state["e.weight"]
    plain = Net()
    plain.load_state_dict(packed.state)


def test_centres_that_training_moved_are_packed_as_they_are_read(tmp_path: Path) -> None:
    """Out of order, equal after rounding, negative zeros: the file holds them ascending and once."""
    model = nn.Sequential(nn.Linear(30, 30))
    quantise(model, {"0.weight": {"kind": "codebook", "bits": 3}})
    _, centres = quantised_weights(model)["0.weight"]
    with torch.no_grad():
        centres.copy_(torch.tensor([5.0, 1.0, 1.0 + 1e-5, -1e-9, 0.3, -0.3, 2.0, 2.5]))
    write_packed(tmp_path / "model.slq", model, {})
    packed = read_packed(tmp_path / "model.slq")
    assert_same_bits(packed.state, dense_state_dict(model))
    assert {entry.name: entry.num_centroids for entry in packed.entries}["0.weight"] == 7
    with torch.no_grad():
        centres.fill_(1e6)
    with pytest.raises(UserError, match=r"0\.weight: quantised weights are not finite"):
        write_packed(tmp_path / "model.slq", model, {})


def test_random_layers_packed_are_those_simulated(tmp_path: Path) -> None:
    layers = list(random_layers(500, most=600))
    model, policy = nn.ParameterDict(), {}
    for number, (_, bits, values) in enumerate(layers):
        rows = next(rows for rows in (4, 3, 1) if len(values) % rows == 0)
        model[f"layer{number}"] = torch.from_numpy(values).view(rows, -1)
        kind = "linear" if number % 5 == 4 and bits > 1 else "codebook"
        policy[f"layer{number}"] = {"kind": kind, "bits": bits, "per_channel": number % 3 == 2}
    quantise(model, policy)
    entries, tied = tensor_specs(model)
    size = write_packed(tmp_path / "model.slq", model, {})
    assert size == (tmp_path / "model.slq").stat().st_size == packed_size(entries, {}, tied=tied)
    assert_same_bits(read_packed(tmp_path / "model.slq").state, dense_state_dict(model))


def test_what_a_file_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    path, model = tmp_path / "model.slq", nn.Linear(30, 30).double()
    quantise(model, {"weight": {"kind": "codebook", "bits": 2}})
    with pytest.raises(UserError, match=r"weight: is torch\.float64"):
        write_packed(path, model, {})
    with pytest.raises(UserError, match=r"bias: a packed file holds no torch\.bfloat16"):
        write_packed(path, nn.Linear(3, 3).bfloat16(), {})
    with pytest.raises(UserError, match="meta: cannot be written as JSON"):
        write_packed(path, nn.Linear(3, 3), {"metrics": {"miou": math.nan}})
    assert not path.exists()


# --- damaged files ---------------------------------------------------------------------------------------------------

Header = dict[str, Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "model.slq"
    write_packed(path, net(), META)
    return path.read_bytes()


def signed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def with_header(data: bytes, change: Callable[[Header], object]) -> bytes:
    """The file with another header, its checksum right."""
    (length,) = struct.unpack("<I", data[4:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return signed(data[:4] + struct.pack("<I", len(text)) + text + data[8 + length : -4])


def tensor(header: Header, name: str = "a.weight") -> dict[str, Any]:
    found: dict[str, Any] = next(line for line in header["tensors"] if line["name"] == name)
    return found


CHANGES: list[tuple[Callable[[Header], object], str]] = [
    (lambda h: h.update(version=2), "is of version 2; this sightline reads version 1"),
    (lambda h: h.update(more=1), "not in canonical form"),
    (lambda h: h.update(tensors={}), "'tensors' is a dict"),
    (lambda h: h["tensors"].append(h["tensors"][0]), "offsets or lengths"),
    (lambda h: h["tensors"].pop(), "belong to no tensor"),
    (lambda h: h["tensors"].append(7), "a tensor without a name"),
    (lambda h: tensor(h).update(shape=[8, 16, 3, 4]), "'a.weight' has offsets or lengths"),
    (lambda h: tensor(h).update(shape=[1 << 60, 1 << 60]), "'a.weight' has an absurd shape"),
    (lambda h: tensor(h).update(shape=[-1]), "'a.weight' has no shape"),
    (lambda h: tensor(h).update(off=0), "'a.weight' has offsets or lengths"),
    (lambda h: tensor(h).update(bits=9), "'a.weight' has codes of 9 bits"),
    (lambda h: tensor(h).update(k=9), "'a.weight' has codes of 3 bits with 9 values"),
    (lambda h: tensor(h).update(groups=5), "'a.weight' has 5 codebooks"),
    (lambda h: tensor(h).update(book="f64"), "codebooks of 'f64'"),
    (lambda h: tensor(h).update(kind="pickle"), "'a.weight' is of an unknown kind"),
    (lambda h: tensor(h, "c.weight").update(k=30), "'c.weight' has steps of f32 for 30 values"),
    (lambda h: tensor(h, "b.bias").update(name="a.bias"), "'a.bias' is listed twice"),
    (lambda h: h["tied"].update({"x": "y"}), "'x' is tied to 'y'"),
    (lambda h: h["tied"].update({"a.weight": "e.weight"}), "'a.weight' is tied to 'e.weight'"),
    (lambda h: h.update(meta=float("nan")), "damaged header"),
]


@pytest.mark.parametrize(("change", "fault"), CHANGES)
def test_headers_that_lie_are_refused(sound: bytes, tmp_path: Path, change: Any, fault: str) -> None:
    path = tmp_path / "model.slq"
    path.write_bytes(with_header(sound, change))
    with pytest.raises(CheckpointError, match=rf"^{path}: .*{fault}"):
        read_packed(path)


def payload_of(data: bytes) -> int:
    return 8 + int(struct.unpack("<I", data[4:8])[0])


def test_bytes_that_lie_are_refused(sound: bytes, tmp_path: Path) -> None:
    path, start = tmp_path / "model.slq", payload_of(sound)
    header = json.loads(sound[8:start])
    few = tensor(header)
    ends = few["off"] + few["len"]
    huge = struct.pack("<I", 0xFFFFFFFF)
    twice = b'{"meta":{},"meta":{},"tensors":[],"tied":{},"version":1}'
    deep = b'{"meta":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b',"tensors":[],"tied":{},"version":1}'
    cases = [
        (b"", "does not begin with SLQ1"),
        (b"SLQ2" + sound[4:], "does not begin with SLQ1"),
        (sound[:6], "is truncated"),
        (sound[:-1], f"is truncated: {len(sound) - 1:,} bytes of {len(sound):,}"),
        (sound + b"\0", "1 bytes belong to no tensor"),
        (sound[:-1] + bytes([sound[-1] ^ 1]), "CRC-32"),
        (sound[:4] + huge + sound[8:], "its header has 4,294,967,295 bytes"),
        (signed(sound[:-4] + b"\0"), "1 bytes belong to no tensor"),
        (signed(b"SLQ1" + struct.pack("<I", len(twice)) + twice), "not in canonical form"),
        (signed(b"SLQ1" + struct.pack("<I", len(deep)) + deep), "damaged header|not in canonical form"),
        (signed(b"SLQ1" + struct.pack("<I", 3) + b"\xff{}"), "damaged header"),
        (signed(b"SLQ1" + struct.pack("<I", 2) + b"[]"), "is not a mapping"),
        # The codebook of a.weight: not a number, then out of order.
        (signed(sound[: start + few["cb_off"]] + b"\0\x7e" + sound[start + few["cb_off"] + 2 : -4]), "not finite"),
        (signed(sound[: start + few["cb_off"]] + b"\0\x7b" + sound[start + few["cb_off"] + 2 : -4]), "not in order"),
    ]
    for data, fault in cases:
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=fault):
            read_packed(path)
    assert ends <= len(sound)
    for path, fault in ((tmp_path / "none.slq", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(CheckpointError, match=fault):
            read_packed(path)


@pytest.mark.parametrize("head", ["zeros", "sound"])
def test_a_sparse_file_is_refused_by_its_header(sound: bytes, tmp_path: Path, head: str) -> None:
    """32 GiB of holes: to read them would take minutes and all memory."""
    path = tmp_path / "model.slq"
    path.write_bytes(sound if head == "sound" else b"")
    with path.open("r+b") as file:
        file.truncate(1 << 35)
    fault = "bytes belong to no tensor" if head == "sound" else "begin with SLQ1"
    with (
        mock.patch(
            "sightline.compression.packed_file.read_regular_file", side_effect=AssertionError("the whole file was read")
        ),
        pytest.raises(CheckpointError, match=fault),
    ):
        read_packed(path)
    with pytest.raises(CheckpointError, match=fault):
        evaluated_sha256(path)


def test_codes_whose_numbers_the_memory_cannot_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit of the file is a float in the model: 2 GiB of holes would be 64 GiB."""
    path = tmp_path / "model.slq"
    write_packed(path, net(), {})
    monkeypatch.setattr(regular_files, "_ALWAYS_FITS_BYTES", 0)
    monkeypatch.setattr(regular_files, "_measure_free_memory", lambda: path.stat().st_size)
    with pytest.raises(CheckpointError, match=r"cannot be read: its content takes [\d,]+ bytes, more than the memory"):
        read_packed(path)


def test_codes_without_a_value_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(101, 5, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(505).view(5, 101) % 3)
    quantise(model, {"weight": {"kind": "codebook", "bits": 2}})
    path = tmp_path / "model.slq"
    write_packed(path, model, {})
    data, start = path.read_bytes(), payload_of(path.read_bytes())
    assert read_packed(path).entries == [PackedTensorSpec("weight", (5, 101), "kq", 2, 3, 1, "f16")]
    path.write_bytes(signed(data[: start + 6] + b"\xff" + data[start + 7 : -4]))
    with pytest.raises(CheckpointError, match="'weight' has a code 3, but 3 values"):
        read_packed(path)
    path.write_bytes(signed(data[:-5] + bytes([data[-5] | 0xC0])))
    with pytest.raises(CheckpointError, match="bits after the last code are not zero"):
        read_packed(path)


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_the_smaller_form_is_taken() -> None:
    """The spec's examples: codes and codebook, with 80 bytes for their longer line, against half precision."""
    large = planned_tensor_spec("w", (262_144,), kind="codebook", bits=3, k=8)
    assert (large.kind, large.code_bytes, large.book_bytes) == ("kq", 98_304, 16)
    assert planned_tensor_spec("w", (64,), kind="codebook", bits=8, k=64).kind == "f16"
    small = planned_tensor_spec("w", (67,), kind="codebook", bits=3, k=8)
    assert (small.kind, small.code_bytes, small.book_bytes) == ("kq", 26, 16)  # 122 < 134
    assert planned_tensor_spec("w", (59,), kind="codebook", bits=3, k=8).kind == "f16"  # 119 > 118
    assert planned_tensor_spec("w", (28,), kind="codebook", bits=8, k=4, is_float32=True).kind == "kq"
    assert planned_tensor_spec("w", (4,), kind="codebook", bits=8, k=4, is_float32=True).kind == "f32"
    assert planned_tensor_spec("w", (1,), kind="linear", bits=8).kind == "f32"


def resnet50_sizes() -> list[int]:
    """Weights of the 54 layers of ResNet-50 (He et al. 2016, table 1) in the order of HAQ, the shortcut last."""
    sizes, entered = [64 * 3 * 49], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            sizes += [entered * width, width * width * 9, width * width * 4]
            sizes += [entered * width * 4] if block == 0 else []
            entered = width * 4
    return [*sizes, 2048 * 1000]


HAQ_STRATEGY = (
    "6 6 5 5 5 5 4 5 5 4 5 5 5 5 5 5 3 5 4 3 5 4 3 4 4 4 2 5 4 3 3 5 3 2 5 3 2 4 3 2 5 3 2 5 3 4 2 5 2 3 4 2 3 4"
)
"""The bits that HAQ's README gives for a tenth of ResNet-50."""


def test_sizes_of_resnet50_are_those_of_haq() -> None:
    sizes = resnet50_sizes()
    assert (len(sizes), sum(sizes)) == (54, 25_502_912)
    bits = [int(each) for each in HAQ_STRATEGY.split()]
    layers = [(size, each, 2 * 2**each) for size, each in zip(sizes, bits, strict=True)]
    state = {"w": torch.empty(25_557_032, device="meta")}
    found = compression_ratios(layers, file_bytes=10_222_813, state=state)
    assert round(found.weights, 5) == 0.09958
    index_bytes = sum(math.ceil(size * each / 8) for size, each, _ in layers)
    assert round(index_bytes / 2**20, 2) == 9.69
    assert round(sum(book for _, _, book in layers) / 1024, 1) == 2.1
    assert found.codebook == (index_bytes + sum(book for _, _, book in layers)) / (4 * 25_502_912)
    assert found.file == pytest.approx(0.1, abs=1e-7)
    for uniform, mebibytes in ((2, 6.08), (3, 9.12), (4, 12.16)):
        each = compression_ratios([(size, uniform, 0) for size in sizes], file_bytes=0, state=state)
        assert round(each.weights * 4 * 25_502_912 / 2**20, 2) == mebibytes
    assert round(4 * 25_557_032 / 2**20, 2) == 97.49
