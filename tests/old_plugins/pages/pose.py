import sightline
from sightline.predict.own_frames import OwnFrames

run = sightline.load_run("runs/hands")
found = run.predict(["frames"], frames=OwnFrames(intrinsics=(241.42, -241.42, 160.0, 120.0), follows=True))
for prediction in found.predicted:
    print(
        prediction.file,
        prediction.joints_mm,
        prediction.joints_px,
        prediction.peaks,
        prediction.reference,
        prediction.ms,
    )
