import sightline


@sightline.surrogate_gradient
def stop(features):
    return features.detach()
