"""Makes tests/fixtures/mistral_chat_ids.json: single-turn conversations and the ids that mistral-common's own v1
instruct tokenizer gives for them (BOS first).

Needs .models/mistral-v0.1-tokenizer (scripts/fetch-mistral-tokenizer), against which it checks that our tokenizer.json
and chat template give the same ids. They can't when a message spells a special token (`<s>`, `</s>`, `<unk>`): Hugging
Face tokenizers read it as that token, mistral-common as plain text. Such messages are left out.
"""

import json
from pathlib import Path

import jinja2
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".models" / "mistral-v0.1-tokenizer"
OUT = ROOT / "tests" / "fixtures" / "mistral_chat_ids.json"

MESSAGES = [
    "Should I admit that I broke the vase?",
    "What is the capital of France?",
    "Yes",
    "a",
    ".",
    " ",
    "   ",
    "\n",
    "\t",
    " leading space",
    "trailing space ",
    "  two leading, two trailing  ",
    "\n\nnewlines before",
    "newlines after\n\n",
    "line one\nline two\r\nline three\n\n\nline six",
    "tabs\tbetween\t\twords",
    "runs  of   spaces    here",
    "It's 3:45 p.m. on 2024-02-29; pi is 3.14159265358979, and 10**9 = 1000000000.",
    "٣٤٥ ४५६ １２３ ½ ² Ⅷ",
    "def f(x):\n    return {k: v**2 for k, v in x.items() if v != 0}  # squares\n",
    "SELECT name, COUNT(*) FROM users WHERE age >= 21 GROUP BY 1 ORDER BY 2 DESC;",
    "<b>not a token</b> &amp; [INST] inside [/INST] <<SYS>>",
    "▁the SentencePiece mark ▁ itself",
    "Où est la bibliothèque ? Ça dépend, naïve façade.",
    "Die Straße führt über das Größenverhältnis hinaus.",
    "¿Debería devolver el dinero que encontré? ¡Claro que sí!",
    "Должен ли я вернуть найденный кошелёк?",
    "我应该承认错误吗？今天天气很好。",
    "間違いを認めるべきでしょうか？はい、そう思います。",
    "제가 실수를 인정해야 할까요?",
    "هل يجب أن أعترف بالخطأ؟",
    "האם עליי להודות בטעות?",
    "क्या मुझे अपनी गलती माननी चाहिए?",
    "ฉันควรยอมรับความผิดพลาดไหม",
    "Μήπως πρέπει να το ομολογήσω;",
    "🙂",
    "🦙🎉 family: 👩‍👩‍👧‍👦 flag: 🇫🇷 skin: 👍🏽",
    "mixed: naïve Ωmega 数字42 🚀done",
    "e\u0301 combining, \u00e9 composed, zero\u200bwidth, non\u00a0breaking",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𓀀",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "http://example.org/a/b?c=d&e=%20f#g",
    "----------====**********______",
    "The quick brown fox jumps over the lazy dog. " * 8,
]


def main():
    theirs = MistralTokenizer.v1()
    ours = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    settings = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(settings["chat_template"])

    conversations = []
    for content in MESSAGES:
        encoded = theirs.encode_chat_completion(ChatCompletionRequest(messages=[UserMessage(content=content)]))
        text = template.render(
            messages=[{"role": "user", "content": content}],
            bos_token=settings["bos_token"],
            eos_token=settings["eos_token"],
        )
        assert text == f"<s>[INST] {content} [/INST]", text
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == encoded.tokens, (content, ids, encoded.tokens)
        conversations.append({"content": content, "text": text, "ids": ids})
    lines = ",\n".join("  " + json.dumps(c, ensure_ascii=False) for c in conversations)
    OUT.write_text(
        '{"made_by": "scripts/reference/mistral_chat_ids.py",\n'
        ' "tokenizer": "mistral-common 1.13.1, MistralTokenizer.v1()",\n'
        ' "text": "the v0.1 chat template\'s rendering; tokenise it without adding special tokens",\n'
        f' "conversations": [\n{lines}\n]}}\n',
        encoding="utf-8",
    )
    print(f"{OUT.relative_to(ROOT)}: {len(conversations)} conversations")


if __name__ == "__main__":
    main()
