"""Evaluating methods on data: samples, tasks, metrics, runs that resume, comparisons."""
