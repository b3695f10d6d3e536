"""Questions that take several searches: an OpenAI Agents SDK agent, its corpora, its tasks and its reward."""
