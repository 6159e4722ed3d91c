"""A random forest of scikit-learn on a data set of a config: python examples/scikit_learn.py"""

import numpy as np
from sklearn.ensemble import RandomForestClassifier

import sightline

CONFIG = "configs/classify/synthetic_shapes_pointnet.yaml"


def describe(points: np.ndarray) -> np.ndarray:
    """Describe clouds (N, P, 3) by sorted quantiles of their radii, heights and extents: (N, 27)."""
    levels = np.linspace(0, 1, 9)
    radii = np.linalg.norm(points, axis=-1)
    columns = (radii, points[..., 2], np.linalg.norm(points[..., :2], axis=-1))
    return np.concatenate([np.quantile(column, levels, axis=1).T for column in columns], axis=1)


def main(*, train_size: int = 480) -> float:
    """Fit on the training split without augmentation; return the accuracy on the test split."""
    overrides = [f"data.train_size={train_size}", "data.test_size=96"]
    train = sightline.load_data(CONFIG, "train", transforms="none", overrides=overrides)[:]
    test = sightline.load_data(CONFIG, "test", overrides=overrides)[:]
    forest = RandomForestClassifier(n_estimators=100, random_state=0)
    forest.fit(describe(train["points"].numpy()), train["label"].numpy())
    return float(forest.score(describe(test["points"].numpy()), test["label"].numpy()))


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
