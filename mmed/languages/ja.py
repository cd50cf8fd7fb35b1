"""Japanese: terms of at least two characters that are not part of an everyday word."""
import functools

from mmed.languages import AnswerWords, Language, split_characters, words
from mmed.utils.errors import require_extra


@functools.cache
def _janome():
    return require_extra("janome.tokenizer", "words").Tokenizer(wakati=True)


def janome_words(text: str) -> list[str]:
    """MMedLM: the official scores cut Japanese with janome.

    DIFFERS: they build a new Tokenizer for every text; we keep one a process. Same words.
    """
    return list(_janome().tokenize(text))


LANGUAGE = Language(
    code="ja", name="Japanese", native_name="日本語", spaced=False, ocr_code="jpn",
    medical_words=words("""
    患者, 症例, 臨床, 診断, 症状, 症候群, 発症, 病変, 既往歴, 病理, 合併症, 医師, 医療, 看護, 入院, 退院,
    手術, 内科, 療法, 検査, 所見, 死亡率, 疫学, 急性, 慢性, 再発, 発熱, 咳嗽, 頭痛, 下痢, 嘔吐, 嘔気, 浮腫,
    出血, 炎症, 感染, 疼痛, 壊死, 腫大, 腫瘤, 圧痛, 肺癌, 腫瘍, 悪性, 転移, 白血病, 高血圧, 血圧, 狭心症,
    不整脈, 心不全, 動脈, 静脈, 血栓, 塞栓, 糖尿病, 血糖, インスリン, ホルモン, 喘息, 肺炎, 気管支,
    インフルエンザ, 肝炎, 肝硬変, 結腸, 直腸, てんかん, 認知症, 統合失調症, 髄膜炎, 敗血症, 細菌, 病原体,
    腎臓, 腎不全, 尿路, 排尿, 膀胱, 肝臓, 肺野, 腸管, 消化管, 食道, 腹部, 腹腔, 胸水, 心電図, 血管, 脳梗塞,
    神経, 骨髄, リンパ節, リンパ, 子宮, 妊娠, 胎児, 新生児, 生検, 超音波, 内視鏡, カテーテル, 切除, 摘出,
    麻酔, 化学療法, ワクチン, 免疫, 抗菌薬, 薬物, 薬剤, 投与, 内服, 服用, 点滴, 注射, ステロイド, 副作用,
    毒性, 白血球, コレステロール, 抗体, 抗原, 細胞, 受容体, 酵素, 遺伝子, 突然変異, 染色体, dna, 組織学, 臓器,
    造影, 陰影, 結節, 嚢胞, 狭窄, 肥厚, 粘膜, バイタル, 処方, 呼吸, 喀痰, 嚥下, 誤嚥, 排便, 尿量, 体温,
    看護師, 病室, 病棟, 転倒, 創部, 術後, 体位, 不眠, 倦怠感, 痛み, 鎮痛, 酸素, 吸引, 腫脹, 発赤, 褥瘡, 脱水,
    便秘, 口腔, 医薬品, 皮下, 骨盤, 右肺, 左肺, 陰性, 陽性, リハビリ, 離床, 清拭, 表皮, 訴えあり, 指示あり,
    眠剤, 輸血, 家族歴, mri, hiv, spo2, 主治医, 訪室, 入眠, 失禁, 術前, 既往, 臥床, 安静, 排痰, 検温, 排泄,
    覚醒, 飲水, 食事摂取
    """),
    min_hits=2, min_density=0.035, official_min_hits=5, official_min_density=0.05,
    medical_sentence="患者は発熱、咳嗽、呼吸困難を主訴に入院し、胸部の画像検査で肺炎と診断され、抗菌薬の点滴"
                     "治療を受けた。",
    ordinary_sentence="海へ向かう電車は九時に出て、私たちは小さな村で昼ごはんを食べる。",
    disclaimer="これは研究用のモデルです。回答は医学的助言ではありません。医師に相談してください。",
    answers=AnswerWords(
        answer="正解, 結論, 正答, 答え, 解答, 回答, 選択肢, 番号, 記号, 診断, 治療, 治療法, 治療薬, 対応, "
               "処置, 検査, 原因, 原因菌, 起因菌, 病因, 所見, 合併症, 機序, 薬剤, 薬, 第一選択, 第一選択薬",
        is_="は, が, のは, の2つ, です, である, になります, になる, だ, でしょう, だと思います, だと思う",
        choose="正しくは, いや, いえ, いいえ, 残るのは, 消去法で, 消去法により, 訂正, やはり, 実は, ゆえに, "
               "よって, したがって, すると, おそらく, たぶん",
        correct="正しい, 望ましい, がよい, が良い, でよい, 適している, 第一選択となる, 推奨される, "
                "推奨されます, 適切, 最適, 妥当, 間違いない, で間違いない, 該当する, に該当する, "
                "該当します, 可能性が高い, の可能性が高い, と診断する, 考えられる, と考えられる, "
                "と考えられます, と考えます, と思われる, と思われます, と思います, かと思います, と答え, "
                "疑われる, 疑われます, 疑わしい, を選択, を選び, を選ぶ",
        wrong="誤, 間違, 不適切, 不正解, 正しくない, 適切でない, 適切ではない, ではない, でない, ではなく, "
              "でなく, じゃない, を除外, 除外, 禁忌, 避け",
        because_if="なぜなら, ため, ので / もし, 仮に, がなければ, であれば",
        not_="しない, できない, しません, できません, られない",
        and_or="と, 及び, および, 並びに / または, もしくは, か", question="問題",
        stated=("正解は{}です。", "答え：{}", "{}が最も適切である。"),
        denied=("{}は誤りである。", "{}ではない。"),
    ),
    split_words=split_characters, official_words=janome_words, official_package="janome",
)
