"""What a command needs of its machine: files, signals, processes, jobs."""
