"""Faults in what concept bottlenecks read: retrieval, banks, encoders, images."""

from __future__ import annotations

from tests.faults import Mutant

BANK, FILES, RETRIEVAL = "concepts/bank.py", "concepts/bank_files.py", "concepts/retrieval.py"
LISTS, NEAR, ENCODERS = (
    "concepts/phrase_lists.py",
    "concepts/near_duplicates.py",
    "concepts/encoders.py",
)
DUAL, IMAGES = "dual_encoder.py", "images.py"
FOUND = ("tests/concepts/test_retrieval.py",)
BANKS = ("tests/concepts/test_bank.py",)
ENCODED = ("tests/concepts/test_encoders.py",)
OPENED = ("tests/test_images.py",)

BANK_MUTANTS = (
    Mutant(
        "retrieval: an image has as many candidates as the poorest one",
        RETRIEVAL,
        "int((scores > floor).sum(1).max())",
        "int((scores > floor).sum(1).min())",
        FOUND,
    ),
    Mutant(
        "retrieval: the last chunk is left out",
        RETRIEVAL,
        "    for start in range(0, len(bank), chunk):\n        part = bank",
        "    for start in range(0, max(len(bank) - chunk, 1), chunk):\n        part = bank",
        FOUND,
    ),
    Mutant(
        "retrieval: phrases that an index does not find are numbered -1",
        RETRIEVAL,
        "        if (rows < 0).any():\n",
        "        if False:\n",
        FOUND,
    ),
    Mutant(
        "retrieval: queries that are no numbers",
        RETRIEVAL,
        "    if not bool(queries.isfinite().all()):\n",
        "    if False:\n",
        FOUND,
    ),
    Mutant(
        "near duplicates: phrases that went count in later blocks",
        NEAR,
        "earlier = bank[some][kept[some].to(bank.device)].float()",
        "earlier = bank[some].float()",
        FOUND,
    ),
    Mutant(
        "near duplicates: the last one stays",
        NEAR,
        ".cpu().tril(-1)",
        ".cpu().triu(1)",
        FOUND,
    ),
    Mutant(
        "near duplicates: few neighbours of a class name",
        NEAR,
        "_NEIGHBOURS = 512",
        "_NEIGHBOURS = 8",
        FOUND,
    ),
    Mutant(
        "bank: the mean is of the last chunk",
        BANK,
        "            total += part.double().sum(0)\n",
        "            total = part.double().sum(0)\n",
        BANKS,
    ),
    Mutant(
        "bank: class names as they are written",
        BANK,
        "names = {normalised(name) for name in classes}",
        "names = set(classes)",
        BANKS,
    ),
    Mutant(
        "bank: class names that may not be phrases as they are written",
        LISTS,
        '("class names", {normalised(name) for name in classes}),',
        '("class names", set(classes)),',
        BANKS,
    ),
    Mutant(
        "bank: phrases of the greatest length go",
        LISTS,
        "len(p) > longest}",
        "len(p) >= longest}",
        BANKS,
    ),
    Mutant(
        "bank: the prompt is not looked at where a bank is loaded",
        BANK,
        "        if prompt is not None and prompt != bank.prompt:\n",
        "        if False:\n",
        BANKS,
    ),
    Mutant(
        "bank: no numbers are like any",
        BANK,
        "        if not float(cosine.min()) >= _ALIKE:",
        "        if float(cosine.min()) < _ALIKE:",
        BANKS,
    ),
    Mutant(
        "bank: bare phrases in a folder",
        FILES,
        "            texts = filled(blank.prompt, blank.phrases[some])\n",
        "            texts = list(blank.phrases[some])\n",
        BANKS,
    ),
    Mutant(
        "bank: any encoder of this name has made a finished bank",
        FILES,
        "            bank.check(encoder)\n            return bank\n",
        "            return bank\n",
        BANKS,
    ),
    Mutant(
        "bank: a user's files are written over",
        FILES,
        "        if (folder / name).exists():\n",
        "        if False:\n",
        BANKS,
    ),
    Mutant(
        "bank: phrases are exchanged unseen",
        FILES,
        'checksum(phrases) != notes["concepts_sha256"]',
        "False",
        BANKS,
    ),
    Mutant(
        "encoders: texts in the order of their length",
        ENCODERS,
        "            out[at] = unit(features, [repr(texts[n]) for n in at])\n",
        "            out[start : start + len(at)] = unit(features, [repr(texts[n]) for n in at])\n",
        ENCODED,
    ),
    Mutant(
        "encoders: features of any length",
        ENCODERS,
        "    return features / length\n",
        "    return features\n",
        ENCODED,
    ),
    Mutant(
        "encoders: a feature of 0 is divided by 0",
        ENCODERS,
        "(length.isfinite() & (length > 0))",
        "length.isfinite()",
        ENCODED,
    ),
    Mutant(
        "encoders: the scale is a logarithm",
        ENCODERS,
        "float(model.logit_scale.detach().float().exp().reshape(()))",
        "float(model.logit_scale.detach().float().reshape(()))",
        ENCODED,
    ),
    Mutant(
        "encoders: one feature does for all",
        ENCODERS,
        "    if shape != [n, encoder.dim]:\n",
        "    if shape[-1] != encoder.dim:\n",
        ENCODED,
    ),
    Mutant(
        "encoders: images are numbered in their batch",
        ENCODERS,
        'open_image(images[n], f"Image {n}") for n in some',
        'open_image(images[n], f"Image {n - start}") for n in some',
        ENCODED,
    ),
    Mutant(
        "encoders: texts are padded on the left",
        DUAL,
        'padding_side="right",',
        'padding_side="left",',
        ENCODED,
    ),
    Mutant(
        "encoders: SigLIP reads texts without its padding",
        DUAL,
        '"max_length" if "siglip"',
        'True if "siglip"',
        ENCODED,
    ),
    Mutant(
        "encoders: features without their name",
        ENCODERS,
        '[f"image {n}" for n in some]',
        '[f"image {n}" for n in range(len(some))]',
        ENCODED,
    ),
    Mutant(
        "images: greys above 255 are white",
        IMAGES,
        '    if picture.mode.startswith("I;16"):\n',
        "    if False:\n",
        OPENED,
    ),
    Mutant(
        "images: numbers without a range are cut",
        IMAGES,
        '    if picture.mode in ("I", "F"):\n',
        "    if False:\n",
        OPENED,
    ),
)
