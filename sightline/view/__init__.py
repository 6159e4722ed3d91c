"""Pages and pictures of samples, of files and of runs, as `sightline view` and `sightline report` write them."""
