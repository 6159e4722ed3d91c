"""Functions of the commands: `sightline train` is `verbs.train.train`, called with the options of `commands`."""
