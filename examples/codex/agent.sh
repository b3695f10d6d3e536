# Codex has no variable for its base URL: the provider's is given on the command line.
set -eu
question=$(node --print 'JSON.parse(require("fs").readFileSync(process.env.LIGHTNINGRL_TASK_FILE)).question')
provider='{name="policy", base_url="'$OPENAI_BASE_URL'", env_key="OPENAI_API_KEY", wire_api="responses", supports_websockets=false}'
workspace=$(mktemp -d)
trap 'rm -rf "$workspace"' EXIT
mkdir "$workspace/home"
CODEX_HOME="$workspace/home" codex exec --cd "$workspace" --skip-git-repo-check \
  --sandbox "${CODEX_SANDBOX:-workspace-write}" --model gpt-5 \
  --config web_search=disabled \
  --config model_provider=policy --config model_providers.policy="$provider" \
  --output-last-message "$LIGHTNINGRL_OUTPUT_FILE" "$question"
