"""Probes of frozen features: linear SVM, logistic regression, nearest neighbours, few-shot."""
