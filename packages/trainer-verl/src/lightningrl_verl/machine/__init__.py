"""What a run needs of the machine that it is on: child processes, and a quiet terminal."""
