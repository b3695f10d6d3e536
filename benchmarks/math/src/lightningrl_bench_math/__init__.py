"""Word problems with a calculator: an AutoGen agent, its tasks, its reward and its tiny policy."""
