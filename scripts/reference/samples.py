"""The texts on which SmolLM2 is compared with the reference, and those that test its tokenizer."""

PROSE = (
    "A stream gauge measures what flows past a point in a stream. The oldest are painted staffs on bridge piers, read "
    "by a keeper who walked down every morning and wrote one number in a book; the newest send the height of the water "
    "by radio every fifteen minutes. Neither measures the flow itself. To know how many cubic metres pass in a second, "
    "someone has to wade or row across with a current meter, stop every few feet, and take the speed at several "
    "depths. Repeat this at low water and in flood, draw a curve through the points, and from then on the height alone "
    "will do, as long as the bed does not shift. It always shifts. After each great flood the curve is measured anew, "
    "and for some weeks the record carries a note that says: estimated. Old keepers trusted the river less than their "
    "books, and their books less than their boots. What the numbers were for was seldom asked. Millers wanted them, "
    "then railways, then cities, and last of all the people who lived on the plain and wished to know, the night "
    "before, whether to carry the piano upstairs."
)

CHAT = [
    {"role": "user", "content": "Is the moon larger than the earth? Answer in one word."},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Are you sure?"},
]

# name: text (a list is a conversation, put through the chat template)
SAMPLES = {
    "prose": (
        "The capital of Norway is Oslo, and in 1952 it held the Winter Olympics; snow had to be carried in by hand."
    ),
    "code": "def gcd(a: int, b: int) -> int:\n    while b:\n        a, b = b, a % b\n    return a\n\n\nassert gcd(48, 36) == 12\n",
    "scripts": "Река течёт. 河水流过测量站。 النهر يجري نحو البحر. नदी बहती है।",
    "emoji": "Good morning! ☀️🌊 The 👩‍🔬 says: 🚣‍♂️ + 🌧️ = 📈… 🙂",
    "chat": CHAT,
    "one-token": "The",
    "digits": "3.14159 × 2 = 6.28318; 0xFF == 255;\t10%\r\n",
    "long": PROSE,
}

TOKENIZER_TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "  two  spaces \n\n\nand\tlines\r\n",
    "It's they're I'd we'll you've o'clock 'quoted'",
    "1 12 123 1234 12345 3.14 ٣٤ ½ ²",
    "def f(x):\n    return x**2  # ok\n",
    "naïve café Straße señor",
    "Привет, мир! Ελληνικά",
    "你好世界。日本語テキスト 한국어",
    "مرحبا بالعالم שלום",
    "नमस्ते ไทย",
    "🙂🦙👩‍👩‍👧‍👦🇫🇷👍🏽",
    "e\u0301 zero\u200bwidth non\u00a0breaking \ufeffbom",
    # 21 of the 256 byte tokens are missing from the vocabulary: these characters vanish.
    "control \x00\x01\x04\x7f and plane 15 \U000f0000",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_start |> <repo_name>x<file_sep>",
    "<|im_end|> space after",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﬁ ①",
    "a" * 50,
    "supercalifragilisticexpialidocious https://example.org/a?b=c%20d",
]

CHATS = [
    {"messages": [{"role": "user", "content": "What is the capital of France?"}], "add_generation_prompt": True},
    {"messages": CHAT, "add_generation_prompt": True},
    {
        "messages": [
            {"role": "system", "content": "Be brief. 简短。"},
            {"role": "user", "content": "  Hello\n🙂  "},
            {"role": "assistant", "content": "Hi."},
        ],
        "add_generation_prompt": False,
    },
]
