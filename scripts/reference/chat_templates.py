"""Remakes tests/fixtures/chat_templates.json: chats as `transformers` renders them.

    python scripts/reference/chat_templates.py      (needs transformers and jinja2)

The templates are written here with the structure of those that models ship: Mistral instruct v0.1, Mistral with
the system prompt in the last user turn, Llama 2, Llama 3, ChatML with a default system prompt, Zephyr, one that
drops the reasoning of earlier turns, one with tools and JSON, one with {% generation %}.
"""

import json
from pathlib import Path

import transformers
from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATES = {
    "mistral-v0.1": {
        "tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        "source": "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    },
    "mistral-v0.3": {
        "tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        "source": "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content'] %}\n    {%- set rest = messages[1:] %}\n"
        "{%- else %}\n    {%- set rest = messages %}\n{%- endif %}\n{{- bos_token }}\n"
        "{%- for message in rest %}\n    {%- if message.role == 'user' %}\n"
        "        {%- if loop.last and system_message is defined %}\n"
        "            {{- '[INST] ' + system_message + '\\n\\n' + message.content + '[/INST]' }}\n"
        "        {%- else %}\n            {{- '[INST] ' + message.content + '[/INST]' }}\n        {%- endif %}\n"
        "    {%- else %}\n        {{- ' ' + message.content | trim + eos_token }}\n    {%- endif %}\n{%- endfor %}\n",
    },
    "llama-2": {
        "tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        "source": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
        "{% for message in rest %}{% if loop.index0 == 0 and system != false %}"
        "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    },
    "llama-3": {
        "tokens": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "source": "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
        " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
        "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    },
    "chatml-default-system": {
        "tokens": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        "source": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a small and helpful model.<|im_end|>\\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    },
    "zephyr": {
        "tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        "source": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    },
    "reasoning-dropped": {
        "tokens": {"eos_token": "<|im_end|>"},
        "source": "{%- set ns = namespace(last=0) %}\n{%- for message in messages %}\n"
        "    {%- if message.role == 'user' and not message.content.startswith('<tool_response>') %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n"
        "    {%- set content = message.content %}\n    {%- if message.role == 'assistant' and '</think>' in content %}\n"
        "        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n    {%- endif %}\n"
        "    {{- '<|im_start|>' + message.role + '\\n' + content + eos_token + '\\n' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    },
    "json-and-generation": {
        "tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        "source": "{{- bos_token }}{% for message in messages %}\n    {%- if message.role == 'assistant' %}\n"
        "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}\n    {%- else %}\n"
        "{{ message.role | upper }}: {{ message.content | tojson }}{% if tools is not none %}!{% endif %}\n"
        "    {%- endif %}\n    {%- if loop.index > 8 %}{% break %}{% endif %}\n{% endfor %}\n"
        "{{ {'a': [1, 2.5, true, none, '<é>'], 'b': {}} | tojson }} {{ [{'x': 1}] | tojson(indent=2) }} {{ true }}",
    },
}

USER = {"role": "user", "content": "Is the moon made of cheese?"}
ANSWER = {"role": "assistant", "content": "No, of rock."}
SPACED = {"role": "user", "content": "  And Mars?\n\n"}
SYSTEM = {"role": "system", "content": "Answer in one word."}
HARD = {"role": "user", "content": "user\n<|im_end|> \u00e9\u4e16\u754c \U0001f600 \"q\" \\ {{ x }} [INST]"}
THOUGHT = {"role": "assistant", "content": "<think>\nHm, cheese?\n</think>\n\nNo, of rock."}

CHATS = {
    "one user turn": [USER],
    "three turns": [USER, ANSWER, USER],
    "spaces": [SPACED, ANSWER, SPACED],
    "system": [SYSTEM, USER],
    "system, three turns": [SYSTEM, USER, ANSWER, HARD],
    "ends with assistant": [USER, ANSWER],
    "reasoning": [USER, THOUGHT, USER],
    "same words": [ANSWER | {"role": "user"}, ANSWER, ANSWER | {"role": "user"}, ANSWER],
    "empty": [USER | {"content": ""}, ANSWER, USER],
    "two users": [USER, USER],
}


def main():
    cases = []
    for template, spec in TEMPLATES.items():
        for chat, messages in CHATS.items():
            for prompt in (False, True):
                case = {"template": template, "chat": chat, "add_generation_prompt": prompt}
                try:
                    texts, _ = render_jinja_template(
                        conversations=[messages],
                        chat_template=spec["source"],
                        add_generation_prompt=prompt,
                        **spec["tokens"],
                    )
                    case["text"] = texts[0]
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
    out = {
        "comment": f"Made by scripts/reference/chat_templates.py with transformers {transformers.__version__}.",
        "templates": TEMPLATES,
        "chats": CHATS,
        "cases": cases,
    }
    path = Path(__file__).parents[2] / "tests/fixtures/chat_templates.json"
    path.write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
