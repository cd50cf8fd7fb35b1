"""German: the bar in front of a term finds it inside compounds."""
from mmed.languages import AnswerWords, Language, words

LANGUAGE = Language(
    code="de", name="German", native_name="Deutsch", spaced=True, ocr_code="deu",
    medical_words=words("""
    patient|, krankheit|/|krankheit|, erkrank|ung/|erkrankung|, klinik|/|klinik|, klinisch|, diagnos|e,
    symptom|, syndrom|/|syndrom|, beschwerd|en, chronisch|, krankenhaus|/krankenhäus|er, stationär|,
    ärzt|lich/arzt/arztes, hausarzt|/hausärzt|e, krankenpfleg|e/pflegekr|aft, chirurg|ie/|chirurg|,
    operati|on, therap|ie/|therapie|, behandl|ung/|behandlung|, mortalität|/|mortalität|, patholog|ie,
    ätiolog|ie, epidemiolog|ie, anamnes|e, befund/befunde, komplikation|, läsion|, trauma|tisch, fieber|,
    übelkeit, erbrechen, durchfall|/diarrh|oe, kopfschmerz|, schmerz|/|schmerz|, atemnot/dyspno|e, husten,
    ödem|/hirnödem|/lungenödem|, gelbsucht/ikterus, blutung|/|blutung|, hämorrhag|ie,
    entzünd|ung/|entzündung|, infekti|on/|infektion|, infizier|t, nekros|e, fibros|e/|fibrose|, schwellung|,
    juckreiz, bewusstlos|igkeit, lähmung|/|lähmung|, krebs|/|krebs|, tumor|/|tumor|, karzinom|/|karzinom|,
    metasta|se, bösartig|, gutartig|, leukämi|e, melanom|/|melanom|, onkolog|ie, hypertoni|e/bluthochdruck|,
    blutdruck|, schlaganfall|/schlaganfäll|e, ischämi|e, infarkt|/|infarkt|, thrombo|se, embolie|/|embolie|,
    arrhythmi|e/|rhythmusstörung|, tachykardi|e, stenos|e/|stenose|, aneurysm|a, insuffizienz|/|insuffizienz|,
    koronar|, diabet|es, blutzucker|, adipos|itas, schilddrüs|e, insulin|, hormon|/|hormon|, anämi|e, asthma|,
    pneumoni|e, tuberkulo|se, bronch|itis, grippe|/influenza, masern, zirrhos|e/|zirrhose|,
    geschwür|/|geschwür|, arthrit|is, arthros|e/|arthrose|, osteo|porose, fraktur|/|fraktur|, knochen|,
    ekzem|, psoriasis, dermat|itis, alzheimer|, parkinson|, epilep|sie, demenz|, depressi|on, schizophreni|e,
    psychiatr|ie, meningit|is, enzephal|itis, sepsis, aids, hiv, malaria, virus/viren/viral|, bakteri|en,
    erreger|, parasit|, niere|, dialys|e/|dialyse|, nephr|itis, harnw|ege/harnbl|ase/harnst|off, urin|,
    prostata|, leber|, gallen|blase, hepat|itis, magen|, darm|/dickdarm|/dünndarm|, gastro|enterologie,
    bauch|/abdom|en, speiseröhr|e, lunge|, pulmonal|, atemweg|, pleura|,
    herzin|farkt/herzkrank|/herzmusk|el/herzfrequ|enz/herzklapp|e, kardi|ologie/kardio|logie, gefäß|/|gefäß|,
    aorta/aorten|, ventrik|el, arteri|e, vene/venen|/venös|, gehirn|/hirn|, zerebr|al, nerven|, neurolog|isch,
    rückenmark|, muskel|/muskul|är, gelenk|/|gelenk|, lymph|knoten, gebärmutter|/uterus|, schwanger|schaft,
    geburtshilf|e/entbind|ung, fetus/fetal|/fötus, gynäkolog|ie, pädiatr|ie, säugling|, haut|/|schleimhaut|,
    biops|ie, röntgen|, sonograf|ie/sonograph|ie/ultraschall|, tomograf|ie/tomograph|ie, endoskop|ie,
    elektrokardiogramm|/ekg, katheter|/|katheter|, resektion|/|resektion|, transplant|ation/|transplantation|,
    anästhesi|e/narkos|e, chemotherap|ie, bestrahl|ung, impf|ung/|impfung|, antibioti|kum, medikament|,
    arznei|mittel, wirkstoff|, dosi|s, tablette|, intraven|ös, injektion|/|injektion|, kortison|/kortiko|id,
    aspirin, paracetamol, nebenwirkung|, kontraindi|kation, pharma|kologie, serum|, plasma/blutplasma|,
    glukos|e/glucos|e, cholesterin|, kreatinin|, hämoglobin|, leukozyt|en, erythrozyt|en, antikörper|,
    antigen|, immun|, enzym|, protein|, zelle|/zellul|är, gewebe|, genetisch|, mutation|, chromosom|, dna/dns,
    rezeptor|/|rezeptor|, stoffwechsel|
    """),
    min_hits=3, min_density=0.05, official_min_hits=4, official_min_density=0.04,
    medical_sentence="Die Patientin wurde mit Fieber, Husten und Atemnot ins Krankenhaus aufgenommen; das "
                     "Röntgenbild zeigte eine Lungenentzündung, und sie bekam Antibiotika intravenös.",
    ordinary_sentence="Der Zug an die Küste fährt um neun, und mittags essen wir in einem kleinen Dorf am "
                      "Meer.",
    disclaimer="Dies ist ein Forschungsmodell. Was es sagt, ist kein ärztlicher Rat; fragen Sie einen Arzt.",
    answers=AnswerWords(
        answer="antwort|, fazit, aussage|, option|, lösung|, buchstabe|, möglichkeit|, ausnahme, diagnose, "
               "verdachtsdiagnose, therapie, behandlung, schritt, maßnahme, mittel der wahl, ursache, "
               "erreger, mechanismus",
        is_="ist, sind, sein, war, handelt sich um, könnte, dürfte, müsste, wäre, wären, lautet, lauten, "
            "heißt, scheint, erscheint",
        choose="wähle, nehme, entscheide mich für, würde, würde mich für, bleibt, bleibt nur, tippe auf, "
               "spricht für, deutet auf, tendiere zu, denke, glaube, meine, vermute, vermutlich, "
               "vielleicht, daher, deshalb, also, somit, folglich, moment, eigentlich, korrektur, doch, "
               "besser gesagt, genauer gesagt, entschuldigung",
        correct="richtig|, korrekt|, zutreffend|, wahr, wahrscheinlich|, beste, besten, ehesten, passend|, "
                "passt, ja, stimmt, trifft, trifft zu, treffen zu",
        wrong="falsch|, unzutreffend|, inkorrekt|, unrichtig|, ausgeschlossen, kontraindiziert, "
              "stimmt nicht, trifft nicht zu, treffen nicht zu",
        not_="nicht, nein, kein, keine, statt, anstatt, anstelle von, weder, noch, niemals",
        because_if="weil, da, denn, wegen, bei / wenn, falls, sofern, viele denken",
        and_or="und, sowie, als auch / oder, bzw., entweder", question="Frage",
        stated=("Die richtige Antwort ist {}.", "Ich wähle {}, weil es passt.", "{} ist die beste Antwort.",
                "Nicht A, sondern {}."),
        denied=("{} ist falsch.", "Es ist nicht {}."),
    ),
    phone_words="telefonnummer|rufnummer|mobil|handy|durchwahl",
)
