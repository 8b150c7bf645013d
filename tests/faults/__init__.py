"""What happens to a run that is killed, damaged or starved: `python -m tests.faults`."""
