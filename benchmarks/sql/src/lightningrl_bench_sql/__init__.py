"""Text to SQL: a LangGraph agent that writes, checks and rewrites queries, its tasks and its reward."""
