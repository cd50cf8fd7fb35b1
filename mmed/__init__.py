"""MMedLM in plain PyTorch: a multilingual medical language model, from corpus to benchmark.

The files in this folder are the method; read them in this order. Everything else is in packages.

    model.py      the decoder, top to bottom           loss.py    its head and cross-entropy, in chunks
    lora.py       two thin matrices beside a weight    tokenizer.py  text <-> ids
    data.py       tokens -> rows of batch k            prompts.py    the prompt and target of an exam item
    config.py     settings, the paper's runs           train.py      one loop for all kinds of training
    generate.py   decoding                             metrics.py    accuracy, BLEU, ROUGE, intervals
    eval.py       an exam in, a result folder out

To add a language: one file in mmed/languages/ (`python -m mmed.languages new CODE`). To add a model family:
an entry in FAMILIES of mmed/checkpoints/families.py, and one in PUBLISHED_PARTS of model.py if its tensors
have names of their own.
"""
