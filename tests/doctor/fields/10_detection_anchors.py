"""Cell detector, one stage, anchors, in the torchvision manner: model(images, targets) gives a dict of losses
when training, model(images) a list of {boxes, scores} when not.  Metric: AP at IoU 0.5 (and 0.75)."""
import numpy as np
import torch
from torch import nn
from torch.nn import functional as nnf
from torch.utils.data import DataLoader

SIZE, STRIDE, SIDES = 48, 8, (9.0, 16.0)


def render(rng):
    """A noisy slide with 0 to 3 cells apart from one another; boxes x1 y1 x2 y2."""
    img = rng.uniform(0, 0.3, (3, 1, 1)) + rng.normal(0, 0.06, (3, SIZE, SIZE))
    (yy, xx), boxes = np.mgrid[:SIZE, :SIZE] + 0.5, []
    for _ in range(rng.integers(0, 4)):
        (w, h), (x, y) = rng.integers(8, 18, 2), rng.integers(0, SIZE - 18, 2)
        if all(x >= b[2] or b[0] >= x + w or y >= b[3] or b[1] >= y + h for b in boxes):
            inside = ((xx - x - w / 2) / (w / 2)) ** 2 + ((yy - y - h / 2) / (h / 2)) ** 2 <= 1
            img[:, inside] += rng.uniform(0.35, 0.7, (3, 1))
            boxes.append([x, y, x + w, y + h])
    return torch.tensor(img).float(), {"boxes": torch.tensor(np.array(boxes)).float().reshape(-1, 4)}


def box_iou(a, b):
    inter = (torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])).clamp(min=0).prod(-1)
    area_a, area_b = ((t[:, 2:] - t[:, :2]).prod(-1) for t in (a, b))
    return inter / (area_a[:, None] + area_b - inter).clamp(min=1e-6)


class TinyRetina(nn.Module):
    def __init__(self, w=16):
        super().__init__()
        conv = lambda i, o, s: nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(True))
        self.backbone = nn.Sequential(conv(3, w, 2), conv(w, 2 * w, 2), conv(2 * w, 4 * w, 2), conv(4 * w, 4 * w, 1))
        self.head = nn.Conv2d(4 * w, len(SIDES) * 5, 3, 1, 1)     # objectness and four deltas per anchor
        nn.init.constant_(self.head.bias[::5], -3.0)              # objects are rare
        c = (torch.arange(SIZE // STRIDE) + 0.5) * STRIDE
        cy, cx, side = torch.cartesian_prod(c, c, torch.tensor(SIDES)).T
        self.register_buffer("centre", torch.stack([cx, cy], 1))
        self.register_buffer("side", side[:, None])

    def forward(self, images, targets=None):
        out = self.head(self.backbone((torch.stack(images) - 0.3) / 0.25)).movedim(1, -1).reshape(len(images), -1, 5)
        if self.training:
            return self.losses(out[..., 0], out[..., 1:], targets)
        return [self.decode(o[:, 0].sigmoid(), o[:, 1:]) for o in out]

    def match(self, gt):
        """Index of the object per anchor; -1 background, -2 ignored.  Every object gets its best anchor."""
        iou = box_iou(torch.cat([self.centre - self.side / 2, self.centre + self.side / 2], 1), gt)
        best, idx = iou.max(1)
        idx[best < 0.5], idx[best < 0.4] = -2, -1
        idx[iou.argmax(0)] = torch.arange(len(gt))
        return idx

    def losses(self, logits, deltas, targets):
        none = torch.full((len(self.side),), -1)
        idx = torch.stack([self.match(t["boxes"]) if len(t["boxes"]) else none for t in targets])
        pos, n_pos = idx >= 0, max(int((idx >= 0).sum()), 1)
        gt = torch.cat([t["boxes"][i[i >= 0]] for t, i in zip(targets, idx)])
        side, centre = self.side.expand(len(idx), -1, 1)[pos], self.centre.expand(len(idx), -1, 2)[pos]
        goal = torch.cat([((gt[:, :2] + gt[:, 2:]) / 2 - centre) / side, ((gt[:, 2:] - gt[:, :2]) / side).log()], 1)
        focal = (pos.float() - logits.sigmoid()).detach().square() * (idx != -2)
        return {"objectness": nnf.binary_cross_entropy_with_logits(logits, pos.float(), focal, reduction="sum") / n_pos,
                "box": nnf.smooth_l1_loss(deltas[pos], goal, beta=0.1, reduction="sum") / n_pos}

    def decode(self, prob, d):
        c, s = self.centre + d[:, :2] * self.side, self.side * d[:, 2:].clamp(max=2).exp()
        boxes, keep = torch.cat([c - s / 2, c + s / 2], 1).clamp(0, SIZE), []
        clash = (box_iou(boxes, boxes) > 0.4).tolist()
        for i in prob.argsort(descending=True).tolist():          # greedy NMS
            if prob[i] > 0.02 and not any(clash[i][j] for j in keep):
                keep.append(i)
        return {"boxes": boxes[keep], "scores": prob[keep]}       # best first


torch.manual_seed(10)
_rng, collate = np.random.default_rng(10), lambda samples: tuple(zip(*samples))
loader = DataLoader([render(_rng) for _ in range(400)], 16, shuffle=True, collate_fn=collate)
evaluation = DataLoader([render(_rng) for _ in range(120)], 30, collate_fn=collate)
model = TinyRetina()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
step = lambda batch: sum(model(*batch).values())


def average_precision(pairs, thr):
    hits, n_gt = [(0.0, 0.0)], sum(len(t["boxes"]) for _, t in pairs)
    for p, t in pairs:
        free = torch.ones(len(t["boxes"]))
        for s, row in zip(p["scores"].tolist(), box_iou(p["boxes"], t["boxes"])):
            hits.append((s, float(len(row) > 0 and bool(row.max() >= thr and free[row.argmax()]))))
            if hits[-1][1]:
                free[row.argmax()] = 0                            # an object counts once
    tp = np.cumsum([h for _, h in sorted(hits, reverse=True)])    # ranked over all images
    precision = np.maximum.accumulate((tp / np.arange(1, len(tp) + 1))[::-1])[::-1]
    return float((np.diff(tp, prepend=0) * precision).sum() / n_gt)


@torch.no_grad()
def score(model, loader):
    model.eval()
    pairs = [(p, t) for images, targets in loader for p, t in zip(model(images), targets)]
    model.train()
    return {"AP50": average_precision(pairs, 0.5), "AP75": average_precision(pairs, 0.75)}


def main(epochs=10):
    print("epoch 0", score(model, evaluation))
    for epoch in range(1, epochs + 1):
        model.train()
        for batch in loader:
            optimizer.zero_grad()
            step(batch).backward()
            optimizer.step()
        print("epoch", epoch, score(model, evaluation))


if __name__ == "__main__":
    main()
