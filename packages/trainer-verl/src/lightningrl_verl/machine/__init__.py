"""What a run needs of the machine that it is on: child processes, whole files, a quiet terminal."""
