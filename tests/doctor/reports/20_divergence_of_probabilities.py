"""https://github.com/microsoft/ProDA/issues/20

In distillation, kl_div was given the probabilities of the student, where it wants their logarithms.
The loss is then linear in the probabilities: the student follows the largest class alone, slowly, and is far too sure.
Held-out cross entropy of the student, seed 0: 0.567 healthy, 0.784 with the bug.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 20


def samples(count, seed):
    prototypes = torch.randn(CLASSES, 24, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return prototypes[labels] + 1.5 * torch.randn(count, 24, generator=generator), labels


def main(has_bug, watch, check):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(24, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    teacher_optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    for _ in range(4):
        for x, y in DataLoader(TensorDataset(*samples(6000, 1)), batch_size=50, shuffle=True):
            teacher_optimizer.zero_grad()
            F.cross_entropy(teacher(x), y).backward()
            teacher_optimizer.step()
    teacher.eval()

    def distillation(outputs, targets):
        student = F.softmax(outputs, dim=1) if has_bug else F.log_softmax(outputs, dim=1)
        return F.kl_div(student, targets, reduction="batchmean")

    unlabelled = samples(3000, 2)[0]
    with torch.no_grad():
        wanted = teacher(unlabelled).softmax(1)
    loader = DataLoader(TensorDataset(unlabelled, wanted), batch_size=50, shuffle=True)
    test_x, test_y = samples(1000, 3)
    student = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, CLASSES))
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    check(student, distillation, loader, optimizer=optimizer)
    with watch(student, optimizer=optimizer, loss=distillation, loader=loader):
        for _ in range(15):
            student.train()
            for x, targets in loader:
                loss = distillation(student(x), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            student.eval()
            with torch.no_grad():
                outputs = student(test_x)
    return F.cross_entropy(outputs, test_y).item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
