"""What a process runs on: device, precision, other processes, memory, signals."""
