"""A page of plain text in several languages, to count tokens on."""

_ENGLISH = """The ferry to the island leaves twice a day, at half past seven and at four. In \
winter it doesn't run when the wind is above 60 km/h, so the 340 people who live there keep a \
fortnight's food in their cellars. "You get used to it," \
says Mrs. Okafor, who has taught at the school since \
1998. "What you don't get used to is the quiet."

To reset the device, hold both buttons for ten seconds until the light turns amber; then release \
them and wait. If nothing happens, check that the battery (type CR2032, 3 V) was inserted the \
right way round. Unauthorized modifications invalidate the warranty.

Photosynthesis converts carbon dioxide and water into glucose and oxygen. The light-dependent \
reactions take place in the thylakoid membranes, whereas the Calvin cycle, which needs no light, \
happens in the stroma. Researchers estimated its efficiency at 3–6 %, depending on conditions.
"""

_CODE = '''import json
from pathlib import Path


class Cache:
    """Results by key, kept in one file."""

    def __init__(self, path: Path, limit: int = 10_000) -> None:
        self.path = path
        self.limit = limit
        self._entries: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, key: str, default: float | None = None) -> float | None:
        if key not in self._entries and default is None:
            raise KeyError(f"{key!r} is not among {len(self._entries)} entries")
        return self._entries.get(key, default)


for (let i = 0; i < rows.length; i++) {
\tconst total = rows[i].values.reduce((sum, x) => sum + x, 0);
\tif (total !== 0 && !seen.has(rows[i].id)) { results.push({ id: rows[i].id, total }); }
}
'''

_GERMAN = """Die Fähre zur Insel fährt zweimal täglich, um halb acht und um vier. Bei starkem Wind \
fällt sie aus; deshalb haben die Bewohner stets Vorräte für vierzehn Tage im Keller. „Daran \
gewöhnt man sich“, sagt die Lehrerin, die seit 1998 an der Schule \
unterrichtet. Straßenbeleuchtung gibt es \
keine, und die Geschwindigkeitsbegrenzung gilt auch für Fußgänger, wie man scherzhaft erzählt.

Zum Zurücksetzen des Geräts halten Sie beide Tasten zehn Sekunden lang gedrückt, bis die Leuchte \
gelb blinkt. Überprüfen Sie anschließend, ob die Batterie richtig herum eingesetzt wurde.
"""

_CHINESE = """去岛上的渡轮每天开两班，早上七点半和下午四点。冬天风大的时候停航，\
所以岛上的三百多位居民\
总会在地窖里储备两个星期的粮食。“习惯了就好，”从1998年起就在学校教书的老师说，“真正难以习惯的是安静。”

要重置设备，请同时按住两个按钮十秒钟，直到指示灯变成黄色，\
然后松开并等待。如果没有反应，请检查电池的方向是否正确。
"""

PLAIN_TEXTS = {"English": _ENGLISH, "code": _CODE, "German": _GERMAN, "Chinese": _CHINESE}
"""By language."""
