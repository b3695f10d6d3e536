import tempfile
from pathlib import Path

import minisweagent
import yaml
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel

CONFIG = yaml.safe_load((Path(minisweagent.__file__).parent / "config/default.yaml").read_text())


def solve(question):
    with tempfile.TemporaryDirectory() as folder:
        agent = DefaultAgent(
            LitellmModel(model_name="openai/gpt-4o", **CONFIG["model"]),
            LocalEnvironment(cwd=folder),
            **CONFIG["agent"],
        )
        return agent.run(question)["submission"]
