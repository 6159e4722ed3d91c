import sightline

result = sightline.train_run(
    "configs/classify/synthetic_shapes_pointnet.yaml", ["train.epochs=5"], out="runs/solids", resume="auto"
)
assert result.is_finished, result.findings or result.stopped_by
print(result.document["metrics"])
