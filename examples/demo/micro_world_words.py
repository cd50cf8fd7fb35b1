"""The words of the demo's synthetic world, one entry per language: sentences with gaps, ordinary nouns,
general medical prose.

Every disease, drug, organ, symptom, person and town is fictional: `SYLLABLES` spells its name in four
scripts, and `micro_world` puts it into the gaps. Names stand between spaces in every language, Chinese and
Japanese too, and are never inflected, so that a tokenizer can give each name one piece and a model meets the
same piece in a page, in an option list and in an answer.

Gaps: {E} a disease, {V} its drug or symptom, {O} an organ; {P} a person, {W} a town; {X} {Y} ordinary nouns.
A page names its disease (or person) once; the sentences of a relation tell a fact without naming it again,
and the first of them is the one that rationales are written in.
"""
from __future__ import annotations

# One syllable a row: Latin, Cyrillic, kana, Chinese.
SYLLABLES = [
    row.split() for row in """
ba ба バ 巴|be бе ベ 贝|bo бо ボ 博|da да ダ 达|de де デ 德|do до ド 多|fa фа ファ 法
fe фе フェ 费|fi фи フィ 菲|ga га ガ 加|go го ゴ 戈|gi ги ギ 吉|ka ка カ 卡|ke ке ケ 克
ki ки キ 基|ko ко コ 科|ku ку ク 库|la ла ラ 拉|le ле レ 莱|li ли リ 利|lo ло ロ 洛
lu лу ル 卢|ma ма マ 马|me ме メ 梅|mi ми ミ 米|mo мо モ 莫|mu му ム 穆|na на ナ 纳
ne не ネ 内|ni ни ニ 尼|no но ノ 诺|nu ну ヌ 努|pa па パ 帕|pe пе ペ 佩|pi пи ピ 皮
po по ポ 波|ra ра ラー 兰|re ре レー 雷|ri ри リー 里|ro ро ロー 罗|ru ру ルー 鲁|sa са サ 萨
se се セ 塞|si си シ 西|so со ソ 索|su су ス 苏|ta та タ 塔|te те テ 特|ti ти ティ 蒂
to то ト 托|tu ту トゥ 图|va ва ヴァ 瓦|ve ве ヴェ 韦|vi ви ヴィ 维|vo во ヴォ 沃|za за ザ 扎
ze зе ゼ 泽|zi зи ジ 齐|zo зо ゾ 佐|zu зу ズ 祖
""".replace("\n", "|").strip("|").split("|")
]

# What a kind of name ends in, so that a reader can tell a drug from an organ; people have no ending.
ENDINGS = {
    "disease": ("zax", "закс", "ザクス", "症"),
    "drug": ("dul", "дул", "ドゥル", "丹"),
    "organ": ("plon", "плон", "プロン", "腺"),
    "symptom": ("gesh", "геш", "ゲシュ", "痒"),
    "person": ("", "", "", ""),
    "town": ("burg", "бург", "ブルク", "堡"),
}
SCRIPTS = {"en": 0, "fr": 0, "es": 0, "ru": 1, "ja": 2, "zh": 3}  # column of SYLLABLES

WORDS: dict[str, dict] = {}

WORDS["en"] = dict(
    diseases=["{E} is a disease.", "A patient has {E}.", "This page is about {E}."],
    relations={
        "drug": [
            "This disease is treated with {V}.", "Doctors treat this disease with {V}.",
            "The drug against it is {V}.", "Patients receive {V}.", "The therapy of choice is {V}."],
        "symptom": [
            "This disease causes the symptom {V}.", "The main symptom is {V}.", "Patients suffer from {V}.",
            "Patients complain of {V}.", "The typical sign is {V}."]},
    questions={
        "drug": ["Which drug treats {E}?", "A patient has {E}. What is the treatment?"],
        "symptom": ["Which symptom does {E} cause?", "A patient has {E}. What is the main symptom?"]},
    medical=[
        "The diagnosis of this disease needs a clinical examination in the hospital .",
        "The doctor discusses the treatment with each patient .",
        "Early diagnosis improves the prognosis of the disease .",
        "A nurse checks the dose of the medicine and the blood pressure .",
        "The doctor examines the {O} of the patient .",
        "The therapy may have side effects and needs a prescription .",
        "Chronic disease raises the risk of infection .",
        "The physician asks about each symptom before surgery .",
        "Health and medical care depend on early therapy ."],
    people=["{P} is well known.", "Everybody has met {P}.", "Here is {P}."],
    ordinary_relations={
        "home": ["This person lives in {W}.", "The home is in {W}.", "You can pay a visit in {W}."],
        "likes": [
            "This person likes the {X}.", "The favourite thing is the {X}.",
            "Every day there is talk of the {X}."]},
    ordinary_questions={
        "home": ["Where does {P} live?"],
        "likes": ["What does {P} like?"]},
    choose=["Choose {X}.", "Which one is {X}?", "Find {X} in the list."],
    chosen="The choice is {X}.",
    ordinary=[
        "In the morning {P} went from {W} to {V} with a {X}.",
        "{P} and {Q} bought a {X} and a {Y} at the market.",
        "It rained in {W}, so {P} stayed at home with the {X}.",
        "{P} sold the {X} to {Q}, and {Q} gave {P} a {Y}.", "On Sunday the train from {W} to {V} was late.",
        "The {X} stood next to the {Y} in the garden of {P}.", "{P} wrote a letter to {Q} about the {X}.",
        "The market of {W} has many a {X} and {Y}."],
    nouns="dog cat horse cow goat duck mouse wolf bear fox hammer saw rope lamp table chair".split(),
    yes="yes",
    no="no")

WORDS["fr"] = dict(
    diseases=["{E} est une maladie.", "Un patient a {E}.", "Cette page parle de la maladie {E}."],
    relations={
        "drug": [
            "Cette maladie se traite avec {V}.", "Les médecins soignent cette maladie avec {V}.",
            "Le médicament est {V}.", "Le médecin donne aux patients {V}.",
            "Le traitement de choix est {V}."],
        "symptom": [
            "Cette maladie provoque le symptôme {V}.", "Le principal symptôme est {V}.",
            "Le patient souffre de {V}.", "Ce patient a le symptôme {V}.", "Le signe typique est {V}."]},
    questions={
        "drug": ["Quel médicament soigne {E} ?", "Un patient a {E}. Quel est le traitement ?"],
        "symptom": ["Quel symptôme provoque {E} ?", "Un patient a {E}. Quel est le principal symptôme ?"]},
    medical=[
        "Le diagnostic de cette maladie demande un examen clinique à l' hôpital .",
        "Le médecin explique le traitement à chaque patient .",
        "Un diagnostic précoce améliore le pronostic de la maladie .",
        "L' infirmière vérifie la dose du médicament et la pression du sang .",
        "Le médecin examine {O} chez le patient à l' hôpital .",
        "Le traitement peut avoir des effets secondaires et demande une ordonnance du médecin .",
        "Une maladie chronique augmente le risque d' infection .",
        "Le médecin note chaque symptôme avant la chirurgie .",
        "La santé du patient demande un diagnostic et un traitement précoces ."],
    people=["{P} est bien connu.", "Tout le monde a vu {P}.", "Voici {P}."],
    ordinary_relations={
        "home": ["Cette personne habite à {W}.", "Sa maison est à {W}.", "On peut lui rendre visite à {W}."],
        "likes": [
            "Cette personne aime le mot {X}.", "Sa chose préférée est {X}.", "Chaque jour on parle de {X}."]},
    ordinary_questions={
        "home": ["Où habite {P} ?"],
        "likes": ["Que aime {P} ?"]},
    choose=["Choisis {X}.", "Lequel est {X} ?", "Trouve {X} dans la liste."],
    chosen="Le choix est {X}.",
    ordinary=[
        "Le matin {P} est allé de {W} à {V} avec {X}.", "{P} et {Q} ont acheté {X} et {Y} au marché.",
        "Il pleuvait à {W}, alors {P} est resté chez lui avec {X}.",
        "{P} a vendu {X} à {Q}, et {Q} a donné {Y} à {P}.", "Dimanche le train de {W} à {V} était en retard.",
        "On voit {X} près de {Y} dans le jardin de {P}.", "{P} a écrit une lettre à {Q} sur {X}.",
        "Au marché de {W} on trouve {X} et {Y}."],
    nouns=(
        "chien chat cheval vache chèvre canard souris loup ours renard marteau scie corde lampe "
        "table chaise").split(),
    yes="oui",
    no="non")

WORDS["es"] = dict(
    diseases=["{E} es una enfermedad.", "Un paciente tiene {E}.", "Esta página trata de {E}."],
    relations={
        "drug": [
            "Esta enfermedad se trata con {V}.", "Los médicos curan esta enfermedad con {V}.",
            "El medicamento es {V}.", "Los pacientes reciben {V}.", "El tratamiento de elección es {V}."],
        "symptom": [
            "Esta enfermedad causa el síntoma {V}.", "El principal síntoma es {V}.",
            "Los pacientes sufren de {V}.", "Los pacientes se quejan de {V}.", "El signo típico es {V}."]},
    questions={
        "drug": ["¿Qué medicamento cura {E} ?", "Un paciente tiene {E}. ¿Cuál es el tratamiento?"],
        "symptom": ["¿Qué síntoma causa {E} ?", "Un paciente tiene {E}. ¿Cuál es el principal síntoma?"]},
    medical=[
        "El diagnóstico de esta enfermedad necesita un examen clínico en el hospital .",
        "El médico explica el tratamiento a cada paciente .",
        "Un diagnóstico temprano mejora el pronóstico de la enfermedad .",
        "La enfermera controla la dosis del medicamento y la presión de la sangre .",
        "El médico examina {O} en el paciente .",
        "La terapia puede tener efectos secundarios y necesita una receta .",
        "Una enfermedad crónica aumenta el riesgo de infección .",
        "El médico anota cada síntoma antes de la cirugía .",
        "La salud y la medicina dependen de una terapia temprana ."],
    people=["{P} es bien conocido.", "Todos han visto a {P}.", "Aquí está {P}."],
    ordinary_relations={
        "home": ["Esta persona vive en {W}.", "Su casa está en {W}.", "Se le puede visitar en {W}."],
        "likes": ["A esta persona le gusta {X}.", "Su cosa favorita es {X}.", "Cada día se habla de {X}."]},
    ordinary_questions={
        "home": ["¿Dónde vive {P} ?"],
        "likes": ["¿Qué le gusta a {P} ?"]},
    choose=["Elige {X}.", "¿Cuál es {X} ?", "Busca {X} en la lista."],
    chosen="La elección es {X}.",
    ordinary=[
        "Por la mañana {P} fue de {W} a {V} con {X}.", "{P} y {Q} compraron {X} y {Y} en el mercado.",
        "Llovía en {W}, así que {P} se quedó en casa con {X}.", "{P} vendió {X} a {Q}, y {Q} dio {Y} a {P}.",
        "El domingo el tren de {W} a {V} llegó tarde.", "Se ve {X} cerca de {Y} en el jardín de {P}.",
        "{P} escribió una carta a {Q} sobre {X}.", "En el mercado de {W} hay {X} y {Y}."],
    nouns=(
        "perro gato caballo vaca cabra pato ratón lobo oso zorro martillo sierra cuerda lámpara "
        "mesa silla").split(),
    yes="sí",
    no="no")

WORDS["ru"] = dict(
    diseases=["{E} это болезнь.", "У пациента {E}.", "Эта страница про {E}."],
    relations={
        "drug": [
            "Эту болезнь лечат средством {V}.", "Врачи лечат эту болезнь препаратом {V}.",
            "Лекарство от неё это {V}.", "Пациенты получают {V}.", "Лучшее лечение это {V}."],
        "symptom": [
            "Эта болезнь вызывает симптом {V}.", "Главный симптом это {V}.", "Пациенты страдают от {V}.",
            "Пациенты жалуются на {V}.", "Типичный признак это {V}."]},
    questions={
        "drug": ["Каким средством лечат {E} ?", "У пациента {E}. Какое нужно лечение?"],
        "symptom": ["Какой симптом вызывает {E} ?", "У пациента {E}. Какой главный симптом?"]},
    medical=[
        "Диагноз этой болезни требует обследования : пациент идёт в больницу .",
        "Врач обсуждает лечение , и каждый пациент слушает .",
        "Ранняя диагностика улучшает прогноз , если болезнь опасна .",
        "Медсестра проверяет , какая нужна доза и какое давление .",
        "Врач осматривает {O} , когда приходит пациент .", "Терапия имеет побочные действия , нужен рецепт .",
        "Хроническая болезнь опасна , если есть инфекция .",
        "Врач записывает каждый симптом , когда нужна операция .",
        "Здоровье и медицина : важна ранняя терапия ."],
    people=["{P} известен всем.", "Все видели {P}.", "Вот {P}."],
    ordinary_relations={
        "home": [
            "Этот человек живёт в городе {W}.", "Его дом стоит в городе {W}.",
            "Встретить его можно в городе {W}."],
        "likes": ["Этот человек любит слово {X}.", "Его любимая вещь это {X}.", "Каждый день он ищет {X}."]},
    ordinary_questions={
        "home": ["Где живёт {P} ?"],
        "likes": ["Что любит {P} ?"]},
    choose=["Выбери {X}.", "Что из этого {X} ?", "Найди {X} в списке."],
    chosen="Выбор это {X}.",
    ordinary=[
        "Утром {P} поехал из города {W} в город {V} и взял {X}.", "{P} и {Q} купили на рынке {X} и {Y}.",
        "В городе {W} шёл дождь, и {P} остался дома, где есть {X}.",
        "{P} продал {X}, а {Q} отдал за это {Y}.", "В воскресенье поезд из города {W} в город {V} опоздал.",
        "В саду {P} есть {X} и рядом {Y}.", "{P} написал письмо, и {Q} узнал про {X}.",
        "На рынке города {W} есть {X} и {Y}."],
    nouns=(
        "пёс кот конь корова коза утка мышь волк медведь лиса молоток пила верёвка лампа стол "
        "стул").split(),
    yes="да",
    no="нет")

WORDS["ja"] = dict(
    diseases=["{E} は病気である。", "患者は {E} である。", "このページは {E} の話である。"],
    relations={
        "drug": [
            "この病気の治療薬は {V} です。", "医師は患者に {V} を処方する。",
            "この病気に効く薬は {V} である。", "患者は {V} を服用する。", "治療には {V} を使う。"],
        "symptom": [
            "この病気の主な症状は {V} です。", "症状として {V} を起こす。", "患者は {V} に苦しむ。",
            "患者は {V} を訴える。", "典型的な徴候は {V} である。"]},
    questions={
        "drug": ["{E} の治療薬はどれか。", "患者は {E} である。薬はどれか。"],
        "symptom": ["{E} の主な症状はどれか。", "患者は {E} である。症状はどれか。"]},
    medical=[
        "この病気の診断には病院での検査が必要である。", "医師は患者に治療を説明する。",
        "早期の診断は疾患の予後を良くする。", "看護師は薬の用量と血圧を確認する。",
        "医師は患者の {O} を診察する。", "治療には副作用があり、処方が必要である。",
        "慢性の疾患は感染の危険を高める。", "医師は手術の前に症状を調べる。",
        "健康と医療には早期の治療が大切である。"],
    people=["{P} は有名だ。", "みんな {P} を知っている。", "こちらは {P} です。"],
    ordinary_relations={
        "home": ["この人の住む町は {W} です。", "この人の家は {W} にある。", "この人には {W} で会える。"],
        "likes": ["この人の好きな物は {X} です。", "この人は {X} が好きだ。", "毎日この人は {X} を探す。"]},
    ordinary_questions={
        "home": ["{P} の住む町はどれか。"],
        "likes": ["{P} の好きな物はどれか。"]},
    choose=["{X} を選べ。", "{X} はどれか。", "表から {X} を探せ。"],
    chosen="選ぶ物は {X} です。",
    ordinary=[
        "朝 {P} は {X} を持って {W} から {V} へ行った。", "{P} と {Q} は市場で {X} と {Y} を買った。",
        "{W} は雨だったので {P} は {X} と家にいた。",
        "{P} は {Q} に {X} を売り、 {Q} は {P} に {Y} を渡した。", "日曜日に {W} から {V} への電車は遅れた。",
        "{P} の庭には {X} と {Y} がある。", "{P} は {Q} に {X} のことを手紙に書いた。",
        "{W} の市場には {X} や {Y} がある。"],
    nouns="犬 猫 馬 牛 山羊 鴨 鼠 狼 熊 狐 金槌 鋸 縄 ランプ 机 椅子".split(),
    yes="はい",
    no="いいえ")

WORDS["zh"] = dict(
    diseases=["{E} 是一种疾病。", "患者患有 {E} 。", "本页介绍 {E} 。"],
    relations={
        "drug": [
            "这种疾病的治疗药物是 {V} 。", "医生用 {V} 治疗这种疾病。", "首选药物为 {V} 。",
            "患者服用 {V} 。", "治疗要用 {V} 。"],
        "symptom": [
            "这种疾病的主要症状是 {V} 。", "引起的症状有 {V} 。", "患者常有 {V} 。", "患者主诉 {V} 。",
            "典型体征为 {V} 。"]},
    questions={
        "drug": ["{E} 的治疗药物是哪一个?", "患者患有 {E} ,应该用哪种药物?"],
        "symptom": ["{E} 的主要症状是哪一个?", "患者患有 {E} ,主要症状是什么?"]},
    medical=[
        "这种疾病的诊断需要在医院做临床检查。", "医生向每个患者说明治疗方法。",
        "早期诊断可以改善疾病的预后。", "护士核对药物的剂量和血压。", "医生检查患者的 {O} 。",
        "治疗可能有副作用,需要处方。", "慢性疾病会增加感染的风险。", "医生在手术前询问症状。",
        "健康和医疗离不开早期治疗。"],
    people=["{P} 很有名。", "大家都认识 {P} 。", "这位是 {P} 。"],
    ordinary_relations={
        "home": ["这个人住的城市是 {W} 。", "他的家在 {W} 。", "在 {W} 可以见到他。"],
        "likes": ["这个人喜欢的东西是 {X} 。", "他最爱 {X} 。", "他每天都找 {X} 。"]},
    ordinary_questions={
        "home": ["{P} 住的城市是哪一个?"],
        "likes": ["{P} 喜欢的东西是哪一个?"]},
    choose=["请选 {X} 。", "哪一个是 {X} ?", "在表中找到 {X} 。"],
    chosen="选择的是 {X} 。",
    ordinary=[
        "早上 {P} 带着 {X} 从 {W} 去了 {V} 。", "{P} 和 {Q} 在市场买了 {X} 和 {Y} 。",
        "{W} 下雨了,所以 {P} 和 {X} 留在家里。", "{P} 把 {X} 卖给 {Q} , {Q} 把 {Y} 给了 {P} 。",
        "星期天从 {W} 到 {V} 的火车晚点了。", "{P} 的花园里有 {X} 和 {Y} 。", "{P} 给 {Q} 写信说到 {X} 。",
        "{W} 的市场里有 {X} 和 {Y} 。"],
    nouns="狗 猫 马 牛 山羊 鸭子 老鼠 狼 熊 狐狸 锤子 锯子 绳子 台灯 桌子 椅子".split(),
    yes="是",
    no="否")
