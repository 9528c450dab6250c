"""Converters: from the files that public data sets are released as to one format of samples."""
