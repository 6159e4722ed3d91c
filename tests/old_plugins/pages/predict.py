import sightline

run = sightline.load_run("runs/tour")
found = run.predict(["chair.ply", "more_clouds"])
for prediction in found.predicted:
    print(prediction.file, prediction.class_name, prediction.probability, prediction.margin)
for refusal in found.refused:
    print(refusal.reason)
