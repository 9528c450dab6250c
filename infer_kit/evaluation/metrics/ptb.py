"""Penn Treebank tokens of captions, as the COCO evaluation makes them, without Java.

`ptb_tokens` gives what pycocoevalcap gets from the Java `PTBTokenizer` (Stanford CoreNLP 3.4.1,
`-preserveLines -lowerCase`) after it has dropped 17 tokens of punctuation. The rules are written
from what that program prints; the tests compare the two on captions.

Two things that look wrong are kept for equal scores:

* brackets stay, as `-lrb-` and `-rrb-`: the list of punctuation has them in capitals, and the
  tokens are lower-cased before they are compared with it;
* `£` becomes `#`, `€` becomes `$`, as in the treebank of 1993.

Differs from Java in what captions hardly have: telephone numbers with brackets or spaces are not
kept together, nor are names of files that begin with a digit, SGML tags with attributes, and rare
smileys. And Java reads all captions as one text: where one ends in a letter and a full stop ("plan
b.") the first word of the *next* caption decides whether the full stop stays with it. Here every
caption is read alone, and it stays.
"""

import re

_DROPPED = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
PUNCTUATION = frozenset(_DROPPED.split())
"""What pycocoevalcap drops. Tokens are in lower case, so four of them never occur."""

# Found by giving the program some 150 common abbreviations of English, "a big st. dog", and 120
# words that often begin a sentence, "plan b. The dog": what keeps its full stop, what does not.
_SHORT = """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
    mr mrs ms dr drs prof rev hon gov sen rep pres gen col lt maj capt sgt cpl pvt adm cmdr
    det supt treas asst assoc messrs jr sr esq bros ph.d
    st ste ave blvd rd mt ft ct sq bldg dept univ
    ala ariz calif colo conn fla ga ind kan ky md mich minn mo mont neb nev okla penn tenn va vt wis
    wyo
    co corp inc ltd plc assn natl intl mfg etc vs cf al seq est ext tel a.k.a
"""
# These are words if in small letters.
_SHORT_IN_CAPITALS = "Ark Del Ill La Mass Miss Ore Pa Tex Wash"
_SHORT_BEFORE_NUMBERS = "no nos fig figs art p pp op ca prop"

# After a letter with a full stop these begin a sentence, and the letter was no initial.
_FIRST_WORDS = """
    A An The This That These There Here He She It We They You Her Our Their One Some Many More Other
    But So Yet If When While As At In After Since However Then Now Once Such What Earlier According
    Additionally About Last Mr. Ms.
"""

_NO_LETTER = r"\W\d_²³¹¼-¾\u2070-\u209c\u2150-\u218b\u2460-\u24ff"
_L = rf"(?:[^{_NO_LETTER}]|[\xad\u0300-\u036f])"  # a letter, an accent, a soft hyphen
_A = rf"(?:{_L}|\d)"  # a letter or digit
_Q = r"['’\x92]"  # an apostrophe
_WORD = rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"  # "hi!there" and "end.Start" are one
_JOINED = rf"(?:{_A}+(?:[-_]{_A}+)+|{_A}(?:{_A}|[.,])*(?:-{_A}+)+)"  # two-year-old, 1,000-seat


def _any(words: str) -> str:
    """A pattern for any of the words, the longest that fits."""
    ordered = sorted(words.split(), key=len, reverse=True)
    return "(?:" + "|".join(map(re.escape, ordered)) + ")"


# The first alternative that fits is the token.
_TOKEN = re.compile(
    rf"""
    </?[a-z][\w.:-]*\ */?>                                                  # tags: <br/>
    | https?://[^\s"<>|()]+[^\s"<>|.!?(){{}},-]                             # addresses
    | (?:[^\s"'`<>|.!?(){{}},\-_$:/@]+\.)+(?:com|net|org|edu)(?!{_A})
      (?:/[^\s"<>|()]+[^\s"<>|.!?(){{}},-])?
    | <?{_A}[^\s"<>|()]*@(?:[^\s"<>|().]+\.)*[^\s"<>|().]+>?                # e-mail
    | @[a-z_]\w* | \#{_L}+ | c\+\+ | [cf]\#                                 # @names, #tags
    | \d{{1,4}}[ -]\d{{1,4}}/\d{{1,4}}                                      # 1 1/2
    | can(?=not(?!{_A})) | (?:gon|wan)(?=na(?!{_A})) | got(?=ta(?!{_A}))
    | (?:gim|lem)(?=me(?!{_A})) | {_Q}t(?=is(?!{_A})|was(?!{_A}))           # split in two
    | (?:o{_Q}clock|ma{_Q}am|cap{_Q}n|c{_Q}mon|{_A}+[aeiouy]{_Q}[aeiou]{_A}*|e{_Q}er)(?!{_A})
    | (?:[odl]{_Q}|(?-i:[A-HJ-XZ]){_Q}(?={_L}{_L}))(?!(?:s|d|m|ll|re|ve|em)(?!{_A}))
      {_A}+(?:[-_]{_A}+)*                                                   # O'Brien, d'Angelo
    | y{_Q}(?={_L}{_L}) | {_L}*?(?<!n)(?=n{_Q}ts?(?!{_A})) (?<={_L}) | n{_Q}ts?(?!{_A})
    | {_Q}n{_Q} | {_Q}n(?!{_A}) | {_Q}(?:em|till?|cause|[2-9]0s)(?!{_A})
    | {_Q}\d\d(?=\s) | {_Q}(?:s|m|d|ll|re|ve)(?!{_A})                       # 's
    | [a-z](?=\.\s+(?-i:{_any(_FIRST_WORDS)})\s)                            # plan b. The
    | (?:{_A}+-)*[a-z](?:\.[a-z])+(?:\.(?:-{_A}+)+|\.(?!{_A})|(?=[\s-]|{_Q}))  # U.S., p.m.
    | (?:{_any(_SHORT)}|(?-i:{_any(_SHORT_IN_CAPITALS)})|[a-z])\.(?!{_A})
    | {_any(_SHORT_BEFORE_NUMBERS)}\.(?=\s?\d)
    | (?:{_JOINED}|{_WORD}|{_A}+)\.(?=[,;:])
    | {_A}+(?:-{_L}+){{0,2}}(?:/{_A}+(?:-{_L}+){{0,2}}){{1,2}}              # and/or
    | (?-i:[A-Z]+)\$                                                        # US$
    | (?-i:[A-Z]+)(?:(?:&amp;|[&+])(?-i:[A-Z]+))+                           # AT&T
    | {_JOINED}
    | [-+]?\d*(?:[.,:]\d+)+ | [-+]\d+ | \d+(?!{_A}) | {_WORD} | {_A}+       # numbers, words
    | [⁺⁻₊₋]?[⁰¹²³⁴-⁹]+ | [₀-₉]+
    | (?P<dots>\.(?:\ \.){{2,4}} | \.{{3,5}}) | (?P<dash>-+) | _+ | @+ | \#+ | \*+ | [?!]+
    | [:;=]-?(?-i:[()DPdpO])(?!{_A}) | \^_\^ | <<|>>                        # smileys
    | &(?:amp|lt|gt|quot|apos|mdash|ndash|nbsp);
    | ''|[`‘’“”«»‹›]{{1,2}}
    | [!-/:-@\[-`{{-~¡-©«¬®-°±´¶-¸»-¿×÷€\x80\x91-\x94\x96\x97]
    | [–-‣…‰-※‾-⁂⁄℀-⅏\u2153-\u215e←-⯿、。〒・！-／：-＠［-｀｛-･￠￡￥￦]
    """,
    re.VERBOSE | re.IGNORECASE,
)

_SPELLED = {
    **{"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"},
    **dict.fromkeys("‘‛‹\x91", "`"),
    **dict.fromkeys("’›\x92", "'"),
    **dict.fromkeys("“«\x93", "``"),
    **dict.fromkeys("”»\x94", "''"),
    **dict.fromkeys("–—―\x96\x97", "--"),
    **dict.fromkeys("€¤₠\x80", "$"),
    **{"£": "#", "¢": "cents", "…": "...", "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3"},
    **{"⅔": "2/3", "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'"},
    **{"&mdash;": "--", "&ndash;": "--", "&nbsp;": " "},
}
"""Tokens that are written otherwise in the treebank; of longer ones, each character."""


def ptb_tokens(caption: str) -> list[str]:
    """Lower-cased Penn Treebank tokens of one caption, without punctuation.

    >>> ptb_tokens("A man (left) doesn't see Dr. Who's t-shirt!")
    ['a', 'man', '-lrb-', 'left', '-rrb-', 'does', "n't", 'see', 'dr.', 'who', "'s", 't-shirt']
    """
    line = caption.replace("\n", " ") + "\n"
    spelled = (_spelled(found, line) for found in _TOKEN.finditer(line))
    return [token for token in spelled if token.strip() and token not in PUNCTUATION]


def _spelled(found: re.Match[str], line: str) -> str:
    """How the treebank writes what was found."""
    text, after = found[0], line[found.end() : found.end() + 2]
    if text in ('"', "&quot;"):
        return "``" if re.match("[A-Za-z0-9$]", after) else "''"
    if text == "'":
        return "`" if re.match(r"[A-Za-z]\S", after) else "'"
    if found["dots"]:
        return "..."
    if found["dash"] and 3 <= len(text) <= 4:
        return "--"
    spelled = _SPELLED.get(text) or "".join(
        _SPELLED.get(character, character) for character in text
    )
    return spelled.replace(" ", "\xa0").replace("\xad", "").lower() or "-"
