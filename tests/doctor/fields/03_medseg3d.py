"""3D multi-class segmentation (0 background, 1 organ, 2 lesion) with a small U-Net."""
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

CONFIG = dict(seed=2021, shape=(16, 16, 20), n_train=48, n_val=10, batch_size=2, accumulate=2,
              lr=3e-2, max_epochs=7, width=8, classes=3)


def simulate_case(case_id):
    """CT-like phantom. Organ: large ellipsoid; lesion: small bright ellipsoid inside (absent in ~1 of 6)."""
    rng = np.random.default_rng([CONFIG["seed"], case_id])
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, s) for s in CONFIG["shape"]], indexing="ij"))
    centre, radii = rng.uniform(-0.25, 0.25, 3), rng.uniform(0.45, 0.65, 3)
    organ = (((grid - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0) < 1
    lesion = np.zeros_like(organ)
    if rng.random() > 1 / 6:
        lc = centre + rng.uniform(-0.25, 0.25, 3)
        lesion = (((grid - lc[:, None, None, None]) / rng.uniform(0.22, 0.4)) ** 2).sum(0) < 1
    lesion &= organ
    label = organ.astype(np.int64) + lesion
    image = np.choose(label, [0.0, 60.0, 140.0]) + rng.normal(0, 40) + rng.normal(0, 20, label.shape)
    image += 25 * np.sin(3 * grid[2] + rng.uniform(0, 6))           # bias field
    return ((image - image.mean()) / image.std()).astype(np.float32), label   # z-score of this volume only


class PhantomDataset(Dataset):
    def __init__(self, case_ids, augment):
        self.case_ids, self.augment = case_ids, augment
        self.cache = [simulate_case(c) for c in case_ids]

    def __len__(self): return len(self.case_ids)

    def __getitem__(self, idx):
        image, label = (torch.from_numpy(a) for a in self.cache[idx])
        if self.augment:
            axes = [d for d in range(3) if torch.rand(()) < 0.5]
            image, label = image.flip(axes), label.flip(axes)       # same flip for both
            image = image * (0.9 + 0.2 * torch.rand(())) + 0.1 * torch.randn(())
        return {"image": image[None], "label": label, "case_id": self.case_ids[idx]}


def conv_block(cin, cout, stride=1):
    return nn.Sequential(
        nn.Conv3d(cin, cout, 3, stride, 1, bias=False), nn.InstanceNorm3d(cout, affine=True), nn.LeakyReLU(0.01, True),
        nn.Conv3d(cout, cout, 3, 1, 1, bias=False), nn.InstanceNorm3d(cout, affine=True), nn.LeakyReLU(0.01, True))


class UNet3D(nn.Module):
    def __init__(self, w, classes):
        super().__init__()
        self.enc1, self.enc2, self.bottleneck = conv_block(1, w), conv_block(w, 2 * w, 2), conv_block(2 * w, 4 * w, 2)
        self.up2, self.dec2 = nn.ConvTranspose3d(4 * w, 2 * w, 2, 2), conv_block(4 * w, 2 * w)
        self.up1, self.dec1 = nn.ConvTranspose3d(2 * w, w, 2, 2), conv_block(2 * w, w)
        self.seg_head = nn.Conv3d(w, classes, 1)

    def forward(self, x):
        s1 = self.enc1(x)
        s2 = self.enc2(s1)
        x = self.dec2(torch.cat([self.up2(self.bottleneck(s2)), s2], 1))
        x = self.dec1(torch.cat([self.up1(x), s1], 1))
        return self.seg_head(x)


def dice_ce(logits, label, eps=1.0):
    """Soft Dice over the foreground classes, pooled over the batch, plus voxel-wise cross entropy."""
    prob = logits.softmax(1)[:, 1:]
    onehot = F.one_hot(label, logits.shape[1]).movedim(-1, 1)[:, 1:].to(prob.dtype)
    dims = (0, 2, 3, 4)
    dice = (2 * (prob * onehot).sum(dims) + eps) / (prob.sum(dims) + onehot.sum(dims) + eps)
    return (1 - dice).mean() + F.cross_entropy(logits, label)


torch.manual_seed(CONFIG["seed"])
ids = range(CONFIG["n_train"] + CONFIG["n_val"])
loader = DataLoader(PhantomDataset(ids[:CONFIG["n_train"]], augment=True), CONFIG["batch_size"], shuffle=True)
evaluation = DataLoader(PhantomDataset(ids[CONFIG["n_train"]:], augment=False), batch_size=1)
model = UNet3D(CONFIG["width"], CONFIG["classes"])
optimizer = torch.optim.SGD(model.parameters(), CONFIG["lr"], momentum=0.95, nesterov=True, weight_decay=3e-5)


def step(batch):
    return dice_ce(model(batch["image"]), batch["label"])


def score(model, loader):
    """Mean over cases of the hard Dice per class; a class absent from both masks counts as 1."""
    per_case = []
    with torch.no_grad():
        model.eval()
        for batch in loader:
            pred = model(batch["image"]).argmax(1)
            for p, t in zip(pred, batch["label"]):
                inter = [(2 * ((p == c) & (t == c)).sum(), (p == c).sum() + (t == c).sum()) for c in (1, 2)]
                per_case.append([float(i / s) if s > 0 else 1.0 for i, s in inter])
    organ, lesion = np.mean(per_case, axis=0).tolist()
    return {"dice_organ": organ, "dice_lesion": lesion, "dice_mean": (organ + lesion) / 2}


def main(epochs=CONFIG["max_epochs"]):
    poly = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: (1 - e / epochs) ** 0.9)
    print("before", score(model, evaluation))
    for epoch in range(epochs):
        model.train()
        optimizer.zero_grad()
        for i, batch in enumerate(loader, 1):
            (step(batch) / CONFIG["accumulate"]).backward()
            if i % CONFIG["accumulate"] == 0 or i == len(loader):   # do not lose the last batches
                nn.utils.clip_grad_norm_(model.parameters(), 12)
                optimizer.step()
                optimizer.zero_grad()
        poly.step()
        print(f"epoch {epoch + 1}/{epochs}", {k: round(v, 3) for k, v in score(model, evaluation).items()})


if __name__ == "__main__":
    main()
