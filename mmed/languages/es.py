"""Spanish."""
from mmed.languages import AnswerWords, Language, nltk_words, split_spaced, words

LANGUAGE = Language(
    code="es", name="Spanish", native_name="Español", spaced=True,
    # Written for this project; the bar stands before the endings of number, gender and derivation.
    medical_words=words("""
        paciente|, enfermedad|, clínic|o, diagn|óstico, síntoma|, sintomát|ico, síndrome|, trastorno|,
        crónic|o, hereditari|o, hospital|, ambulatori|o, médic|o, medicin|a, cirug|ía, quirúrgic|o,
        terap|ia, terapéutic|o, tratamiento|, mortalidad, patolog|ía, etiolog|ía, lesión/lesiones,
        traumatismo|, fiebre|, febril, náusea|, vómito|, diarrea|, cefalea|, astenia, disnea, edema|,
        hemorrag|ia, sangrado|, inflama|ción, infecci|ón, necros|is, fibrosis, dolor|, absceso|, cáncer|,
        tumor|, carcinoma|, metásta|sis, malign|o, leucemi|a, melanoma|, neoplas|ia, oncol|ogía,
        hipertens|ión, hipotensión, isquemi|a, isquémic|o, infarto|, trombo|sis, taquicardia, estenosis,
        aneurisma|, insuficiencia, coronari|o, presión arterial, tensión arterial, diabet|es, diabétic|o,
        glucemi|a, obesidad, tiroid|es, insulin|a, hormon|a, anemi|a, asma, neumon|ía, tubercul|osis,
        bronqui|tis, gripe, hepatitis, úlcera|, páncrea|s, pancreát|ico, apendic|itis, osteo|porosis,
        fractur|a, psoriasis, dermat|itis, alzheimer, parkinson, epilep|sia, depresión, esquizofreni|a,
        psiquiatr|ía, mening|itis, encefal|itis, sepsis, sida, vih, malaria, virus, bacteri|a, parásit|o,
        renal|, nefr|itis, urinari|o, orina, vejiga, próstata, hígado, hepátic|o, gástric|o,
        gastro|intestinal, intestin|al, abdom|en, esófag|o, pulmon|ar, respiratori|o, pleural|, cardíac|o,
        cardio|logía, vascular|, aort|a, ventrícul|o, arteria|, arterial|, vena/venas, venos|o, cerebral|,
        craneal|, neurol|ogía, músculo|, muscular|, ganglio|, linf|ático, ovári|co, gestaci|ón, pediátric|o,
        cután|eo, biopsia|, radiol|ogía, radiograf|ía, ecograf|ía, tomograf|ía, resonancia, endoscop|ia,
        electrocardiograma|, catéter|, resección, trasplant|e, anestesi|a, quimioterapi|a, radioterapi|a,
        vacun|a, antibiótic|o, antiviral|, fármaco|, medicament|o, dosis, comprimido|, intraven|oso,
        inyecci|ón, corticoide|, esteroide|, aspirina, paracetamol, analgésic|o, suero, sérico|,
        plasmátic|o, glucosa, colesterol, creatinina, hemoglobina, plaqueta|, leucocit|o, anticuerpo|,
        antígeno|, inmun|e, proteín|a, célula|, tejido|s, genétic|o, mutaci|ón, cromosom|a, adn, receptor|,
        lumbar, quiste|, hernia|, ocular|, agudeza visual, dental|, postoperatori|o, alerg|ia, parto,
        exploración, analítica, derrame, bilateral, salud, alta hospitalaria, ingres|o
    """),
    # Chosen on one half of the labelled texts by benchmarks/data_prep/bench_filter.py --part quality; figures
    # in docs/benchmarks.md.
    min_hits=4, min_density=0.03,
    official_min_hits=4, official_min_density=0.04,  # MMedLM: the published thresholds for Spanish
    ocr_code="spa",
    medical_sentence="La paciente ingresó en el hospital con fiebre, tos y disnea; la radiografía mostró "
                     "una neumonía y se inició "
                     "tratamiento antibiótico intravenoso.",
    ordinary_sentence="El tren hacia la costa sale a las nueve y almorzaremos en un pequeño pueblo junto "
                      "al mar.",
    disclaimer="Este es un modelo de investigación. Lo que dice no es consejo médico; consulte a un médico.",
    answers=AnswerWords(
        cue="respuesta[_ ](?:idx|index|key|letter|correcta?)|respuestas?(?: (?:correctas?|"
            "incorrectas?|falsas?))?|(?:opci[oó]n(?:es)?|alternativas?|afirmaci[oó]n(?:es)?) "
            "(?:correctas?|incorrectas?|falsas?|verdaderas?)|son (?:correctas|verdaderas|ciertas)|"
            "diagnósticos?|tratamientos?|manejo|siguiente paso|causa|germen|mecanismo|conducta|"
            "l[ao]s? (?:correctas?|incorrectas?|falsas?|verdaderas?)",
        decide="elijo|elegir|escojo|selecciono|me quedo con|marco|opto por|en realidad|perdón|mejor "
               "dicho|corrección|corrijo|rectifico|por (?:lo )?tanto|así que|por consiguiente|"
               r"no(?=[,.;!] |\.\.)",
        weak=r"es la|es el|es(?= [a-z](?:[.,\n]|$))|sería la|diría|creo que|pienso que|probablemente|"
             "será la",
        negation=r"no(?! ?[,.;])|no (?:es|son|era|sería)|en (?:vez|lugar) de|descart\w+",
        negation_before="no",
        or_="o|u|o bien",
        and_="y|e|así como",
        but="sino(?: que)?",
        copula="es|son",
        link="era|sería",
        filler="la|las|el|los|letra|opci[oó]n(?:es)?|correctas?|alternativas?|respuestas?|final|"
               "seguramente|probablemente",
        goes_on="porque|ya|pues|y|es|son|dado|debido|o|sino|no",
        because="porque|ya que",
        is_answer="(?:es|son|sería)(?: claramente)? (?:la|las|el|mi) (?:mejor |única )?(?:respuesta|"
                  "opci|alternativa|(?:correcta|verdadera|adecuada|acertada)s?(?![a-z]))",
        right_link="(?:es|son)(?: también)? ",
        right="correctas?|verdader[ao]s?|ciert[ao]s?",
        wrong_link="(?:es|son)?",
        wrong="no (?:es|son)|incorrecta?s?|falsas?|falso|erróneas?",
        name_before="vitamina|hepatitis|grupo|tipo|factor",
        named="reactiva|virus",
        item_prefix="el|opción",
        line_prefix="opción",
        bare_tail="(?:y)? ?no [A-ZА-Я]",
        question="Pregunta",
        avoid="contra-?indica|evit|incorrect",
        stated=("La respuesta correcta es la {}.", "Elijo la {}.", "{} es la respuesta correcta."),
        denied=("{} es falsa.", "No es la {}."),
    ),
    split_words=split_spaced, official_words=nltk_words,
)
