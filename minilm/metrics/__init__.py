"""Metrics of records, as functions of how often each example is taken, and what tells two of them apart."""
