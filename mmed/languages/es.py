"""Spanish."""
from mmed.languages import AnswerWords, Language, words

LANGUAGE = Language(
    code="es", name="Spanish", native_name="Español", spaced=True, ocr_code="spa",
    medical_words=words("""
    paciente|, enfermedad|, clínic|o, diagn|óstico, síntoma|, sintomát|ico, síndrome|, trastorno|, crónic|o,
    hereditari|o, hospital|, ambulatori|o, médic|o, medicin|a, cirug|ía, quirúrgic|o, terap|ia, terapéutic|o,
    tratamiento|, mortalidad, patolog|ía, etiolog|ía, lesión/lesiones, traumatismo|, fiebre|, febril, náusea|,
    vómito|, diarrea|, cefalea|, astenia, disnea, edema|, hemorrag|ia, sangrado|, inflama|ción, infecci|ón,
    necros|is, fibrosis, dolor|, absceso|, cáncer|, tumor|, carcinoma|, metásta|sis, malign|o, leucemi|a,
    melanoma|, neoplas|ia, oncol|ogía, hipertens|ión, hipotensión, isquemi|a, isquémic|o, infarto|,
    trombo|sis, taquicardia, estenosis, aneurisma|, insuficiencia, coronari|o, presión arterial,
    tensión arterial, diabet|es, diabétic|o, glucemi|a, obesidad, tiroid|es, insulin|a, hormon|a, anemi|a,
    asma, neumon|ía, tubercul|osis, bronqui|tis, gripe, hepatitis, úlcera|, páncrea|s, pancreát|ico,
    apendic|itis, osteo|porosis, fractur|a, psoriasis, dermat|itis, alzheimer, parkinson, epilep|sia,
    depresión, esquizofreni|a, psiquiatr|ía, mening|itis, encefal|itis, sepsis, sida, vih, malaria, virus,
    bacteri|a, parásit|o, renal|, nefr|itis, urinari|o, orina, vejiga, próstata, hígado, hepátic|o, gástric|o,
    gastro|intestinal, intestin|al, abdom|en, esófag|o, pulmon|ar, respiratori|o, pleural|, cardíac|o,
    cardio|logía, vascular|, aort|a, ventrícul|o, arteria|, arterial|, vena/venas, venos|o, cerebral|,
    craneal|, neurol|ogía, músculo|, muscular|, ganglio|, linf|ático, ovári|co, gestaci|ón, pediátric|o,
    cután|eo, biopsia|, radiol|ogía, radiograf|ía, ecograf|ía, tomograf|ía, resonancia, endoscop|ia,
    electrocardiograma|, catéter|, resección, trasplant|e, anestesi|a, quimioterapi|a, radioterapi|a, vacun|a,
    antibiótic|o, antiviral|, fármaco|, medicament|o, dosis, comprimido|, intraven|oso, inyecci|ón,
    corticoide|, esteroide|, aspirina, paracetamol, analgésic|o, suero, sérico|, plasmátic|o, glucosa,
    colesterol, creatinina, hemoglobina, plaqueta|, leucocit|o, anticuerpo|, antígeno|, inmun|e, proteín|a,
    célula|, tejido|s, genétic|o, mutaci|ón, cromosom|a, adn, receptor|, lumbar, quiste|, hernia|, ocular|,
    agudeza visual, dental|, postoperatori|o, alerg|ia, parto, exploración, analítica, derrame, bilateral,
    salud, alta hospitalaria, ingres|o
    """),
    min_hits=4, min_density=0.03, official_min_hits=4, official_min_density=0.04,
    medical_sentence="La paciente ingresó en el hospital con fiebre, tos y disnea; la radiografía mostró una "
                     "neumonía y se inició tratamiento antibiótico intravenoso.",
    ordinary_sentence="El tren hacia la costa sale a las nueve y almorzaremos en un pequeño pueblo junto al "
                      "mar.",
    disclaimer="Este es un modelo de investigación. Lo que dice no es consejo médico; consulte a un médico.",
    answers=AnswerWords(
        answer="respuesta|, conclusión, opción, opciones, alternativa|, afirmación, letra, diagnóstico|, "
               "tratamiento|, manejo, paso, causa, germen, agente, mecanismo, conducta",
        is_="es, son, era, ser, sería, será, parece, podría ser, puede ser, debe ser",
        choose="elijo, elegir, elegiría, escojo, escogería, selecciono, seleccionaría, me quedo con, "
               "nos quedamos con, me inclino por, me decanto por, queda, sugiere, descarte, eliminación, "
               "marco, marcaría, opto por, optaría por, diría, creo, pienso, probablemente, por tanto, "
               "por lo tanto, por consiguiente, así que, en realidad, perdón, mejor dicho, corrección, "
               "corrijo, rectifico",
        correct="correct|a, verdader|a, ciert|a, adecuad|a, acertad|a, mejor, probable, explica mejor, "
                "encaja mejor, se ajusta mejor",
        wrong="incorrect|a, fals|a, erróne|a, inadecuad|a, contraindicad|a, evit|ar",
        not_="no, ni, en vez de, en lugar de, descartamos, descarto, descartar",
        because_if="porque, ya que, pues, dado, debido / si, muchos piensan, algunos piensan",
        and_or="y, e, así como / o, u, o bien", question="Pregunta",
        stated=("La respuesta correcta es la {}.", "Elijo la {}.", "{} es la respuesta correcta."),
        denied=("{} es falsa.", "No es la {}."),
    ),
)
