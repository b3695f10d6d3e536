"""What a run needs of the machine that it is on: memory, child processes, links, and a quiet terminal."""
