import torch

import sightline

model = sightline.build_model("pointnet", num_classes=40, in_channels=3)
run = sightline.load_run("runs/tour")
clouds = run.transform({"points": torch.rand(2, 256, 3)})["points"]
classes = [run.class_names[index] for index in run.model(points=clouds)["logits"].argmax(dim=1)]
