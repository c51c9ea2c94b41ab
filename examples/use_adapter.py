"""Load an adapter of alignkit with transformers and PEFT alone, and ask it something.

    python use_adapter.py runs/sft/adapter "Do you sell umbrellas?"

The directory names its base model. `alignkit sft --model tiny` names the embedded one, whose
directory is given as a third argument.
"""

import json
import sys
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

adapter, question = sys.argv[1:3]
config = json.loads((Path(adapter) / "adapter_config.json").read_text())
base = sys.argv[3] if len(sys.argv) > 3 else config["base_model_name_or_path"]

tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)

messages = [{"role": "user", "content": question}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
# Tokens after the prompt are the completion.
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
