from pathlib import Path

import minisweagent
import yaml
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel

config = yaml.safe_load((Path(minisweagent.__file__).parent / "config/default.yaml").read_text())
model = LitellmModel(model_name="openai/gpt-4o", **config["model"])
agent = DefaultAgent(model, LocalEnvironment(), **config["agent"])
result = agent.run("What is 1234567 times 7?")
print("the default agent in a local shell", result["submission"].strip(), sep="\t")
