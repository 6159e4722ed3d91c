from sightline.engine.loading import open_run
from sightline.layers.quantisation.activations import calibrated

run = open_run(Path("runs/trained"))
evaluate = run.evaluator(run.data.train)
entries = calibrated(run.model, lambda: evaluate(run.model, run.world), ["head.1.weight"], bits=8)
policy["head.1.weight"]["activation"] = entries["head.1.weight"]
