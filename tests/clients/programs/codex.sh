provider='{name="gateway", base_url="'$OPENAI_BASE_URL'", env_key="OPENAI_API_KEY", wire_api="responses", supports_websockets=false}'
codex exec --skip-git-repo-check --sandbox danger-full-access --model gpt-5 \
  --config web_search=disabled \
  --config model_provider=gateway --config model_providers.gateway="$provider" \
  --output-last-message said.txt "What is 1234567 times 7?" >&2
printf 'a session with its shell\t%s\n' "$(cat said.txt)"
