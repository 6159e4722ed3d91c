run = sightline.load_run("runs/parts")
found = run.predict(["mug_01.ply"], category="mug", with_probabilities=True)
for prediction in found.predicted:
    print(prediction.file, prediction.num_points, prediction.shares, prediction.mean_probability)
    prediction.points, prediction.labels, prediction.probability, prediction.probabilities  # (N, 3), (N,), (N,), (N, C)
