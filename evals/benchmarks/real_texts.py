"""Texts that no model has seen: written for this benchmark, each some 260 to 400 bytes.

Every text ends where a sentence or a statement ends, so that its own tokens are seldom cut short;
after the newline that ends code, a token may have more.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """A text, how tables call it, and what it is written in."""

    name: str
    language: str
    text: str


_FERRY = (
    "The ferry to Brannock Island was cancelled on Tuesday after divers found a crack in the hull. "
    "About forty islanders spent the night in the school gym, where the cook from the harbour café "
    "handed out soup. A spokeswoman said that repairs would take at least nine days and that a "
    "smaller boat would carry mail and medicine until then."
)
_RECIPE = (
    "Peel two pears and cut them into thin slices. Melt a spoonful of butter in a wide pan, add "
    "the slices with a pinch of cardamom, and let them brown without stirring. Meanwhile beat "
    "three eggs with a cup of milk and half a cup of rye flour. Pour the batter over the fruit, "
    "cover the pan and wait until the top no longer moves."
)
_STORY = (
    '"You kept the key," said Oona. It was not a question. Her brother turned the little brass '
    "thing over in his palm, as if the answer might be scratched on the other side. Outside, snow "
    'slid off the roof with a sigh. "I kept it," he said at last, "because she told me the house '
    'would be sold, and I did not believe her."'
)
_MOSS = (
    "Moss has no roots. It takes up water through its leaves, which are often a single cell thick, "
    "and when the air dries it simply stops living for a while. Some species have revived after "
    "decades in a drawer. Because moss cannot pump water upwards, it stays low, and because it "
    "stays low, it finds what taller plants leave behind: shade."
)
_LETTER = (
    "Dear Ms Tavener,\n\nThank you for the samples, which arrived on Friday. Unfortunately two of "
    "the six panels were scratched, and the colour of panel 4 does not match the card you sent in "
    "March. Could you replace these three before the 18th? If not, please let me know by Monday, "
    "so that we can move the installation.\n\nKind regards,\nP. Oduya\n"
)
_PYTHON = '''\
def longest_gap(times: list[float], limit: float = 30.0) -> tuple[int, float]:
    """Index and length of the longest gap between two readings."""
    best, where = 0.0, -1
    for i in range(1, len(times)):
        gap = times[i] - times[i - 1]
        if gap > best and gap <= limit:
            best, where = gap, i
    if where < 0:
        raise ValueError("no gap within the limit")
    return where, best
'''
_C = """\
#include <stddef.h>

/* Rotate the first n bytes of buf to the left by k places. */
void rotate_left(unsigned char *buf, size_t n, size_t k)
{
    unsigned char first;

    if (n == 0)
        return;
    for (k %= n; k > 0; k--) {
        first = buf[0];
        for (size_t i = 0; i + 1 < n; i++)
            buf[i] = buf[i + 1];
        buf[n - 1] = first;
    }
}
"""
_SQL = """\
-- Boats that were not inspected in the last year, oldest inspection first
SELECT b.name, b.berth, MAX(i.inspected_on) AS last_seen
FROM boats AS b
LEFT JOIN inspections AS i ON i.boat_id = b.id
WHERE b.sold = FALSE
GROUP BY b.id, b.name, b.berth
HAVING MAX(i.inspected_on) IS NULL
    OR MAX(i.inspected_on) < CURRENT_DATE - INTERVAL '1 year'
ORDER BY last_seen;
"""
_HTML = """\
<form action="/berths" method="post">
  <label for="boat">Name of the boat</label>
  <input id="boat" name="boat" type="text" required>
  <label for="nights">Nights</label>
  <select id="nights" name="nights">
    <option value="1">one</option>
    <option value="2" selected>two</option>
    <option value="7">a week</option>
  </select>
  <button type="submit">Book</button>
</form>
"""
_GERMAN_STORY = (
    "Als der Müller am Morgen die Tür öffnete, stand der Bach still. Kein Rauschen, kein Klappern "
    "des Rades, nur ein dünner Spiegel aus Eis, unter dem sich die Forellen nicht rührten. Er "
    "holte die Axt, überlegte es sich anders und setzte Kaffee auf. Größere Eile hatte an diesem "
    "Tag niemand im ganzen Tal."
)
_GERMAN_NOTICE = (
    "Liebe Hausgemeinschaft, wegen Arbeiten an der Fernwärmeleitung bleibt am Donnerstag von 8 "
    "bis 14 Uhr das Warmwasser abgestellt. Bitte schließen Sie die Ventile im Badezimmer und "
    "prüfen Sie am Abend, ob die Heizkörper wieder gleichmäßig warm werden. Für Rückfragen "
    "erreichen Sie die Hausverwaltung unter der bekannten Nummer."
)
_CHINESE_STORY = (
    "天还没亮，卖豆腐的老周就推着车出了巷子。昨夜下过雨，石板路上全是落叶，车轮压过去没有一点声音。"
    "他在桥头停下来，点了一支烟，等那个每天第一个来买豆腐的小女孩。可是今天她没有来，来的是她的奶奶，"
    "手里拿着一封信。"
)
_CHINESE_TECHNICAL = (
    "这个程序先把传感器的读数按时间排序，再删除重复的记录。如果两次读数之间相差超过三十秒，"
    "就在日志里写一条警告。用户可以在设置文件中修改这个时间，也可以完全关闭检查。注意：修改以后必须重新启动服务。"
)
_ARABIC = (
    "استيقظ الصياد قبل الفجر ووجد البحر هادئًا على غير عادته. حمل شباكه القديمة وجلس في القارب "
    "ينتظر أخاه، لكن أخاه لم يأتِ. وبعد ساعة رأى على الشاطئ طفلًا صغيرًا يلوّح له بقميص أبيض، "
    "فعرف أن في القرية خبرًا لا ينتظر."
)
_RUSSIAN = (
    "Почтальон приезжал на остров раз в неделю, по четвергам, если не было шторма. Он оставлял "
    "письма в синем ящике у причала, пил чай со смотрителем маяка и рассказывал новости, которые к "
    "тому времени уже никому не были нужны."
)
_FRENCH = (
    "Le dernier bus était parti depuis longtemps quand Élise sortit de l'atelier, les mains encore "
    "pleines de plâtre. Elle décida de rentrer à pied, en suivant le canal. Sous le deuxième pont, "
    "quelqu'un jouait de l'accordéon pour personne, très doucement, comme s'il craignait de "
    "réveiller les péniches."
)
_JAPANESE = (
    "駅前の古い時計屋は、来月で店を閉めるそうだ。店主の佐野さんは、直し終わった腕時計を一つずつ布で拭きながら、"
    "「もう時間を売る時代じゃないからね」と笑った。壁の時計は、どれも少しずつ違う時刻を指していた。"
)
_SWITCH = (
    "Minutes of the joint meeting, second part. The English section of the report was accepted "
    "without changes, and the chair thanked the editors for their patience. Danach berichtete Frau "
    "Böttcher über die Kosten der neuen Anlegestelle: Die Pfähle müssen tiefer gesetzt werden als "
    "geplant, weil der Grund weicher ist, als das Gutachten angenommen hatte."
)

# The first four are those of a quick run.
SAMPLES = (
    Sample("ferry", "English, news", _FERRY),
    Sample("gaps", "Python", _PYTHON),
    Sample("mill", "German, story", _GERMAN_STORY),
    Sample("tofu", "Chinese, story", _CHINESE_STORY),
    Sample("pears", "English, recipe", _RECIPE),
    Sample("key", "English, dialogue", _STORY),
    Sample("moss", "English, nature", _MOSS),
    Sample("panels", "English, letter", _LETTER),
    Sample("rotate", "C", _C),
    Sample("boats", "SQL", _SQL),
    Sample("form", "HTML", _HTML),
    Sample("heating", "German, notice", _GERMAN_NOTICE),
    Sample("sensor", "Chinese, technical", _CHINESE_TECHNICAL),
    Sample("net", "Arabic, story", _ARABIC),
    Sample("postman", "Russian, story", _RUSSIAN),
    Sample("canal", "French, story", _FRENCH),
    Sample("clocks", "Japanese, story", _JAPANESE),
    Sample("minutes", "English, then German", _SWITCH),
)
