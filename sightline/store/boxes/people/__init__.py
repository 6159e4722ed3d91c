"""Labels of published sets of people as rows of the table of labels: their kinds, a reader and a writer each."""
