"""What a process runs on: device and precision, cores, other processes, memory, signals."""
