"""Agent Lightning 0.3's LLM proxy as a process; run by that peer's interpreter, not by ours.

Arguments: URL of its store, port, URL of the engine, file for the rollouts and attempts that it makes.
"""

import asyncio
import json
import sys
from pathlib import Path

import agentlightning  # pyright: ignore[reportMissingImports] - the peer's environment has it

_ATTEMPTS = 64


async def _main(store_url: str, port: str, engine_url: str, attempts: str) -> None:
    store = agentlightning.LightningStoreClient(store_url)
    model = {"model": "hosted_vllm/policy", "api_base": engine_url}
    proxy = agentlightning.LLMProxy(
        port=int(port),
        host="127.0.0.1",
        store=store,
        num_workers=1,
        launch_mode="mp",
        model_list=[{"model_name": "policy", "litellm_params": model}],
    )
    await proxy.start()
    made = [await store.start_rollout(input={"number": number}) for number in range(_ATTEMPTS)]
    part = Path(attempts + ".part")
    part.write_text(json.dumps([(one.rollout_id, one.attempt.attempt_id) for one in made]))
    part.replace(attempts)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
