"""Files of labelling tools as rows of the table of labels: a reader each, and a writer where it has one."""
