"""Labelled files -> examples: tables, tagged sentences and questions, their splits, and an embedded set."""
