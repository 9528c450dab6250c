"""Text in many scripts, made from our own sentences by a seed."""

from __future__ import annotations

import random
import unicodedata

SENTENCES = (
    "The lighthouse keeper's daughter hadn't seen the sea for 14 days, but she'd heard it.",
    "It costs $3,499.99 (plus 7.5% tax); they'll ship it before 2031-05-08, won't they?",
    "A small boat drifted slowly toward the harbor while the gulls argued over nothing.",
    "Gestern überquerten die Mädchen die Straße; größere Vögel flohen aus dem Schloßgärtchen.",
    "Der Zug nach Düsseldorf fährt heute um 17:45 Uhr von Gleis 3 ab – pünktlich, hoffentlich!",
    "Où est passé l'hôtel dont les fenêtres s'ouvraient sur la forêt ? « Là-bas », dit-elle, çà.",
    "El niño compró piñones en la peña; ¿quién sabría decir cuántos años tenía la cigüeña?",
    "Старый рыбак починил сеть и вышел в море ещё до рассвета, когда посёлок спал.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю!",
    "كتب المعلم رسالة طويلة إلى تلاميذه، ثم أغلق الباب وخرج إلى السوق.",
    "أين المكتبة؟ في الشارع الثالث على اليمين، قرب المسجد.",
    "हमारे गाँव में बारिश के बाद सड़कें कीचड़ से भर जाती हैं, पर बच्चे खुश रहते हैं।",
    "清晨的市场里挤满了人，卖鱼的老人正在和顾客讨价还价。",
    "机器学习模型把文字切成很多小块；同一句话可以有不同的切法。",
    "昨日の夜、古い駅の前で友達と三時間も待っていました。",
    "カタカナとひらがな、それに漢字を混ぜて書くのが普通です！",
    "어제 저녁에 도서관에서 빌린 책을 아직 다 읽지 못했습니다.",
    "Γιατί ο παλιός χάρτης έδειχνε νησιά που δεν υπάρχουν πια;",
    "הספינה הישנה עגנה בנמל, והמלחים ירדו לחוף בשירה.",
    "แมวตัวเล็กนอนหลับอยู่บนหลังคาบ้านในตอนบ่าย",
    "Çocuklar bahçede ağaçların gölgesinde oynuyor, İstanbul'da yağmur yağıyor.",
    "Trời mưa suốt đêm, nước ngập đến tận bậc cửa nhà.",
    "Great job 🎉👍🏽! See you there 👨‍👩‍👧‍👦 🏳️‍🌈 … or not 🤷🏾‍♀️ ❤️‍🔥",
    "∀x ∈ ℝ: x² ≥ 0 ⇒ √(x²) = |x| ≠ −1, and ½ + ¼ ≈ 0.75 µm ± 3 °C",
    "\u200bzero\u200dwidth\ufeff, soft\xadhyphen, non\xa0breaking, 𝔉𝔯𝔞𝔨𝔱𝔲𝔯 and 𒀀𒁀 and \U0002070e",
)
CODE = (
    "def area(width: float, height: float = 1.0) -> float:\n    return width * height\n",
    "\tfor (int i = 0; i < n; ++i) {\n\t\tsum += a[i] * b[i];  /* dot product */\n\t}\n",
    'if __name__ == "__main__":\n        print(f"{x!r:>10}", file=sys.stderr)\n\n\n',
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name;\n",
    '<div class="box"><p>Hello &amp; welcome</p><s>old</s></div>\n',
    "# Heading\n\n* item one\n* item **two**\n\n```sh\n$ ls -la | grep '^d'\n```\n",
    r"\begin{equation} \frac{a}{b} = \sum_{i=1}^{n} x_i^{2} \end{equation}" + "\n",
)
GAPS = (" ", " ", " ", "\n", "\n\n", "  ", "\t", "\r\n", "     ", " \n ", "\n\n\n    ", ",", "…")
RUNS = (" " * 17, "\n" * 9, "\t" * 5, "=" * 60, "-" * 33, "1234567890" * 3, "ha" * 20, " " * 130)


def multilingual(size: int, seed: int = 0) -> str:
    """Text of at least `size` bytes, NFC: sentences, parts of them, code, and runs of spaces."""
    draw = random.Random(seed)
    parts, total = [], 0
    while total < size:
        kind = draw.random()
        if kind < 0.6:
            part = draw.choice(SENTENCES)
        elif kind < 0.8:  # from one sentence into another, cut anywhere
            a, b = draw.choice(SENTENCES), draw.choice(SENTENCES)
            part = a[draw.randrange(len(a)) :] + b[: draw.randrange(len(b))]
        elif kind < 0.95:
            part = draw.choice(CODE)
        else:
            part = draw.choice(RUNS)
        if draw.random() < 0.1:
            part = part.upper() if draw.random() < 0.5 else part.title()
        parts += [part, draw.choice(GAPS)]
        total += len((parts[-2] + parts[-1]).encode())
    return unicodedata.normalize("NFC", "".join(parts))
