"""The survey's tree as data: groups, leaves, systems and papers. Tables, tests and the command line
read it from here.

Source: Yu et al., "Visual Tuning", ACM Computing Surveys 2024, arXiv 2305.06061; section numbers
are the survey's. A system with a key has one file here, `vtlite/methods/<key>.py`, or is to get
one; a system without a key is a row: one line, its paper, and the nearest method.
"""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.methods import METHODS
from vtlite.storage import unknown


@dataclass(frozen=True)
class Leaf:
    """A leaf of the tree; `path` is its folder under vtlite/methods."""

    path: str
    title: str
    idea: str


@dataclass(frozen=True)
class Group:
    """One of the survey's five groups, with the number of its section."""

    path: str
    section: str
    title: str
    idea: str
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True)
class System:
    """A system named by the survey, or added to it (`extra`). Where its paper is not known for
    certain, paper and venue are empty."""

    name: str
    leaf: str
    idea: str
    paper: str
    venue: str
    year: int | None
    arxiv: str | None
    key: str | None  # "parameter/weight/lora": what the method is called here; None for a row
    nearest: str | None  # for a row, the key of the method that is most like it
    extra: bool  # from after the survey, or from its neighbourhood

    @property
    def short(self) -> str:
        """The name to type: the last part of the key, or the system's name for a row."""
        return self.key.rsplit("/", 1)[-1] if self.key else self.name


GROUPS = (
    Group(
        "finetuning",
        "3.1",
        "Fine-tuning",
        "train weights the backbone already has, all or some of them",
        (
            Leaf(
                "finetuning",
                "Fine-tuning",
                "nothing is added but a head; methods differ in what trains, when, and how far it"
                " may move",
            ),
        ),
    ),
    Group(
        "prompt",
        "3.2",
        "Prompt tuning",
        "leave the backbone alone and learn part of its input",
        (
            Leaf("prompt/vision", "Vision-driven", "learned pixels or tokens on the image side"),
            Leaf(
                "prompt/language",
                "Language-driven",
                "learned words on the text side of a vision-language model",
            ),
            Leaf(
                "prompt/vision_language",
                "Vision-language",
                "learned input on both sides, tied together",
            ),
        ),
    ),
    Group(
        "adapter",
        "3.3",
        "Adapter tuning",
        "insert small trainable modules into a frozen backbone",
        (
            Leaf(
                "adapter/sequential",
                "Sequential",
                "the module works on the output of a frozen layer",
            ),
            Leaf(
                "adapter/parallel",
                "Parallel",
                "the module works beside a frozen layer, and the outputs are added",
            ),
            Leaf("adapter/mix", "Mix", "modules in several places, or combined with prompts"),
        ),
    ),
    Group(
        "parameter",
        "3.4",
        "Parameter tuning",
        "add a small learned change to the parameters themselves",
        (
            Leaf("parameter/bias", "Bias part", "only biases change, or something acts like one"),
            Leaf(
                "parameter/weight",
                "Weight part",
                "the change of a weight matrix is built from few numbers",
            ),
            Leaf(
                "parameter/both",
                "Weight and bias",
                "both change, in few entries or along few directions",
            ),
        ),
    ),
    Group(
        "remapping",
        "3.5",
        "Remapping tuning",
        "carry what a model knows over to another model",
        (
            Leaf(
                "remapping/distillation",
                "Knowledge distillation",
                "through outputs or features that the new model learns to match",
            ),
            Leaf(
                "remapping/weight",
                "Weight remapping",
                "through weights, transformed so that the new model starts as the old function",
            ),
            Leaf(
                "remapping/architecture",
                "Architecture remapping",
                "through an architecture, searched by gradients in a shared supernet",
            ),
        ),
    ),
)
LEAVES = tuple(leaf for group in GROUPS for leaf in group.leaves)

UNIDENTIFIED = "Named in the survey; its paper was not identified with certainty."

# Leaf -> its systems as (mark, name, idea, paper, "venue year", arXiv number). The marks: "+ file"
# is the survey's and has a file here; "x file" has a file too but is an addition to the survey; "~
# file" is a row whose nearest method is `file`.
_TABLE: dict[str, tuple[tuple[str, str, str, str, str, str], ...]] = {
    "finetuning": (
        ("+ full", "Full fine-tuning", "Train every parameter from its pre-trained value.",
         "Rich feature hierarchies for accurate object detection and semantic segmentation",
         "CVPR 2014", "1311.2524"),
        ("+ linear", "Linear probing", "Train only a linear head, on features computed once.",
         "Understanding intermediate layers using linear classifier probes", "ICLR-W 2017",
         "1610.01644"),
        ("x mlp_head", "MLP head", "Train a head of several layers on frozen features.",
         "Visual Prompt Tuning (its baseline MLP-k)", "ECCV 2022", "2203.12119"),
        ("x partial", "Partial", "Train the last k blocks and freeze the rest.",
         "How transferable are features in deep neural networks?", "NeurIPS 2014", "1411.1792"),
        ("x layerwise_decay", "Layer-wise learning-rate decay",
         "Give each earlier block a learning rate smaller by a constant factor.",
         "BEiT: BERT Pre-Training of Image Transformers", "ICLR 2022", "2106.08254"),
        ("x lp_ft", "LP-FT",
         "Probe first, then fine-tune from the probe, so that a random head does not distort the "
         "features.",
         "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution",
         "ICLR 2022", "2202.10054"),
        ("x l2_sp", "L2-SP",
         "Penalise the squared distance from the pre-trained weights instead of from zero.",
         "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", "ICML 2018",
         "1802.01483"),
        ("x gradual_unfreezing", "Gradual unfreezing",
         "Start with the head and unfreeze one more block per epoch, from the top.",
         "Universal Language Model Fine-tuning for Text Classification", "ACL 2018", "1801.06146"),
        ("x wise_ft", "WiSE-FT", "Average the weights before and after fine-tuning.",
         "Robust fine-tuning of zero-shot models", "CVPR 2022", "2109.01903"),
        ("x norm_tuning", "Normalisation-only tuning",
         "Train only the scales and shifts of the normalisation layers.",
         "Training BatchNorm and Only BatchNorm", "ICLR 2021", "2003.00152"),
    ),
    "prompt/vision": (
        ("+ vpt_shallow", "VPT-shallow", "Learn extra tokens at the input of the first block.",
         "Visual Prompt Tuning", "ECCV 2022", "2203.12119"),
        ("+ vpt_deep", "VPT-deep", "Learn fresh extra tokens for every block.",
         "Visual Prompt Tuning", "ECCV 2022", "2203.12119"),
        ("+ vp", "VP", "Add a learned frame of pixels to every image.",
         "Exploring Visual Prompts for Adapting Large-Scale Models", "arXiv 2022", "2203.17274"),
        ("+ evp", "EVP",
         "Add prompts made from patch embeddings and high-frequency components to the tokens of "
         "every block.", "Explicit Visual Prompting for Low-Level Structure Segmentations",
         "CVPR 2023", "2303.10883"),
        ("+ pgn", "PGN",
         "Let a small network mix prompts for each image out of a learned token library.",
         "Prompt Generation Networks for Input-Space Adaptation of Frozen Vision Transformers",
         "BMVC 2024", "2210.06466"),
        ("+ pro_tuning", "Pro-tuning",
         "Compute a prompt from each stage's feature map with a light convolution block, and add "
         "it.", "Pro-tuning: Unified Prompt Tuning for Vision Tasks", "TCSVT 2024", "2207.14381"),
        ("+ lpt", "LPT",
         "Tune shared prompts, then groups of prompts picked by key for each image, for "
         "long-tailed classes.", "LPT: Long-tailed Prompt Tuning for Image Classification",
         "ICLR 2023", "2210.01033"),
        ("+ noah", "NOAH",
         "Search per block how many prompts, which LoRA rank and which adapter width pay off.",
         "Neural Prompt Search", "TPAMI 2024", "2206.04673"),
        ("+ s_prompting", "S-Prompting",
         "Learn one set of prompts per domain, and find the domain of a test image by its "
         "features.", "S-Prompts Learning with Pre-trained Transformers", "NeurIPS 2022",
         "2207.12819"),
        ("~ vpt_deep", "DePT",
         "Tune prompts and head at test time with pseudo-labels from a memory bank.",
         "Visual Prompt Tuning for Test-time Domain Adaptation", "arXiv 2022", "2210.04831"),
        ("~ vpt_deep", "ZegCLIP",
         "Prompt CLIP's image tower deeply and match patches with text for zero-shot segmentation.",
         "ZegCLIP: Towards Adapting CLIP for Zero-shot Semantic Segmentation", "CVPR 2023",
         "2212.03588"),
        ("~ vpt_deep", "ACT",
         "Prompt a frozen 2-D or language transformer into an autoencoder of 3-D data, then "
         "distil from it.", "Autoencoders as Cross-Modal Teachers", "ICLR 2023", "2212.08320"),
        ("~ vpt_deep", "PViT",
         "Give a video transformer prompts for several tasks, learned on synthetic scenes.",
         "PromptonomyViT: Multi-Task Prompt Learning Improves Video Transformers", "arXiv 2022",
         "2212.04821"),
        ("~ vp", "TeCoA",
         "Adapt CLIP, by prompts or weights, to match adversarial images with their text.",
         "Understanding Zero-Shot Adversarial Robustness for Large-Scale Models", "ICLR 2023",
         "2212.07016"),
        ("~ vp", "ProSFDA",
         "Learn a pixel prompt from batch-norm statistics to bring a target domain near to the "
         "unseen source.",
         "ProSFDA: Prompt Learning based Source-free Domain Adaptation for Medical Image "
         "Segmentation", "arXiv 2022", "2211.11514"),
        ("~ s_prompting", "APT",
         "Train one prompt per data source apart, and compose any of them at test time by masked "
         "attention.", "A-la-carte Prompt Tuning: Combining Distinct Data Via Composable Prompting",
         "CVPR 2023", "2302.07994"),
        ("~ vpt_deep", "PAT", UNIDENTIFIED, "", "", ""),
        ("~ clip_adapter", "PointCLIP",
         "Project a point cloud to depth maps for CLIP, with a small adapter over the views.",
         "PointCLIP: Point Cloud Understanding by CLIP", "CVPR 2022", "2112.02413"),
        ("~ vp", "P2P",
         "Learn to draw and colour a point cloud as an image that a frozen image model can read.",
         "P2P: Tuning Pre-trained Image Models for Point Cloud Analysis with Point-to-Pixel "
         "Prompting", "NeurIPS 2022", "2208.02812"),
        ("~ pgn", "PromptGen",
         "Learn a distribution of latents that steers a frozen image generator.",
         "Generative Visual Prompt: Unifying Distributional Control of Pre-Trained Generative "
         "Models", "NeurIPS 2022", "2209.06970"),
        ("~ vpt_deep", "FPTrans",
         "Prompt a ViT with foreground and background proxies for few-shot segmentation.",
         "Feature-Proxy Transformer for Few-Shot Segmentation", "NeurIPS 2022", "2210.06908"),
        ("~ vp", "FRPT",
         "Warp the pixels of an object into a form that a frozen backbone tells apart, for "
         "fine-grained retrieval.", "Fine-grained Retrieval Prompt Tuning", "AAAI 2023",
         "2207.14465"),
        ("~ coop", "RePro",
         "Learn prompts per motion pattern for subject and object of a relation in a video.",
         "Compositional Prompt Tuning with Motion Cues for Open-vocabulary Video Relation "
         "Detection", "ICLR 2023", "2302.00268"),
        ("~ kd", "ViLD",
         "Distil CLIP's image embeddings of proposals into a detector that classifies by text.",
         "Open-vocabulary Object Detection via Vision and Language Knowledge Distillation",
         "ICLR 2022", "2104.13921"),
        ("~ vpt_shallow", "LION",
         "Replace prompts by equilibrium (implicit) layers at both ends of a frozen backbone.",
         "LION: Implicit Vision Prompt Tuning", "AAAI 2024", "2303.09992"),
    ),
    "prompt/language": (
        ("+ coop", "CoOp", "Replace the words around a class name by learned vectors.",
         "Learning to Prompt for Vision-Language Models", "IJCV 2022", "2109.01134"),
        ("+ cocoop", "CoCoOp",
         "Shift the learned context by a vector that a small network computes from the image.",
         "Conditional Prompt Learning for Vision-Language Models", "CVPR 2022", "2203.05557"),
        ("+ prograd", "ProGrad", "Drop the part of the gradient that contradicts zero-shot CLIP.",
         "Prompt-aligned Gradient for Prompt Tuning", "ICCV 2023", "2205.14865"),
        ("+ plot", "PLOT",
         "Match several prompts per class with the local image features by optimal transport.",
         "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", "ICLR 2023",
         "2210.01253"),
        ("+ lasp", "LASP",
         "Make learned prompts classify as the hand-written ones of their class, text to text.",
         "LASP: Text-to-Text Optimization for Language-Aware Soft Prompting of Vision & Language "
         "Models", "CVPR 2023", "2210.01115"),
        ("+ dualcoop", "DualCoOp",
         "Learn a positive and a negative context per class, for several labels per image.",
         "DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited Annotations",
         "NeurIPS 2022", "2206.09541"),
        ("+ sgva_clip", "SgVA-CLIP",
         "Learn a context and a visual adapter together, with implicit distillation between them.",
         "SgVA-CLIP: Semantic-guided Visual Adapting of Vision-Language Models for Few-shot Image"
         " Classification", "TMM 2023", "2211.16191"),
        ("~ prograd", "SubPT",
         "Project the prompt's gradients on the directions of its early training, before it "
         "overfits.",
         "Understanding and Mitigating Overfitting in Prompt Tuning for Vision-Language Models",
         "TCSVT 2023", "2211.02219"),
        ("~ coop", "MPA",
         "Learn one prompt per source domain and align them in a shared low-dimensional space.",
         "Multi-Prompt Alignment for Multi-Source Unsupervised Domain Adaptation", "NeurIPS 2023",
         "2209.15210"),
        ("~ plot", "ZegOT",
         "Match several text prompts with the pixels of a frozen image tower by optimal transport.",
         "ZegOT: Zero-shot Segmentation Through Optimal Transport of Text Prompts", "arXiv 2023",
         "2301.12171"),
        ("~ cocoop", "X-CLIP",
         "Give CLIP attention over frames, and text prompts computed from the video.",
         "Expanding Language-Image Pretrained Models for General Video Recognition", "ECCV 2022",
         "2208.02816"),
        ("~ coop", "Berg et al.",
         "Learn an array of text tokens against an adversary that reads protected attributes from"
         " the scores.",
         "A Prompt Array Keeps the Bias Away: Debiasing Vision-Language Models with Adversarial "
         "Learning", "AACL 2022", "2203.11933"),
        ("~ cocoop", "PTP",
         "Learn prompt prototypes for clusters of images, and weight them by the image's "
         "similarity to each cluster.",
         "Prompting through Prototype: A Prototype-based Prompt Learning on Pretrained "
         "Vision-Language Models", "arXiv 2022", "2210.10841"),
        ("~ coop", "LANIT",
         "Translate unlabelled images between domains named by text, with a learned prompt for "
         "the domains.", "LANIT: Language-Driven Image-to-Image Translation for Unlabeled Data",
         "CVPR 2023", "2208.14889"),
        ("~ cocoop", "CPL",
         "Contrast prompts with counterfactual images that differ as little as possible.",
         "CPL: Counterfactual Prompt Learning for Vision and Language Models", "EMNLP 2022",
         "2210.10362"),
        ("~ coop", "DeFo",
         "Learn textual queries free of class names, and a linear layer on the similarities.",
         "Learning to Decompose Visual Features with Latent Textual Prompts", "ICLR 2023",
         "2210.04287"),
        ("~ pgn", "GALIP",
         "Predict prompts for a frozen CLIP inside the generator and discriminator of a "
         "text-to-image GAN.", "GALIP: Generative Adversarial CLIPs for Text-to-Image Synthesis",
         "CVPR 2023", "2301.12959"),
        ("~ coop", "PointCLIP V2",
         "Prompt CLIP with better depth maps and a language model's 3-D descriptions, without "
         "training.", "PointCLIP V2: Prompting CLIP and GPT for Powerful 3D Open-world Learning",
         "ICCV 2023", "2211.11682"),
    ),
    "prompt/vision_language": (
        ("+ upt", "UPT",
         "Make the prompts of both towers from one learned sequence by a small transformer.",
         "Unified Vision and Language Prompt Learning", "arXiv 2022", "2210.07225"),
        ("+ dpt", "DPT",
         "Prompt both towers, and let the last visual prompts attend from class texts to the "
         "image.", "Dual Modality Prompt Tuning for Vision-Language Pre-Trained Model", "TMM 2023",
         "2208.08340"),
        ("+ maple", "MaPLe",
         "Compute the image tower's deep prompts from the text tower's by a linear map per depth.",
         "MaPLe: Multi-modal Prompt Learning", "CVPR 2023", "2210.03117"),
        ("+ tpt", "TPT",
         "Tune the prompt on one test image so that its confident augmented views agree.",
         "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models",
         "NeurIPS 2022", "2209.07511"),
        ("~ upt", "MVLPT",
         "Learn prompts on many source tasks first, and start each target task from them.",
         "Multitask Vision-Language Prompt Tuning", "WACV 2024", "2211.11720"),
        ("~ maple", "MetaPrompt",
         "Learn prompts of both towers by meta-learning over episodes that hold out a domain.",
         "Learning Domain Invariant Prompt for Vision-Language Models", "TIP 2024", "2212.04196"),
    ),
    "adapter/sequential": (
        ("+ residual_adapter_series", "Residual adapter (series)",
         "Put a 1x1 convolution with a skip after every frozen convolution.",
         "Learning multiple visual domains with residual adapters", "NeurIPS 2017", "1705.08045"),
        ("x houlsby", "Houlsby adapter",
         "Put a bottleneck with its own skip after the attention and after the MLP of every block.",
         "Parameter-Efficient Transfer Learning for NLP", "ICML 2019", "1902.00751"),
        ("x pfeiffer", "Pfeiffer adapter", "Put one bottleneck per block, after the MLP.",
         "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", "EACL 2021",
         "2005.00247"),
        ("+ lst", "LST",
         "Train a thin side network on the backbone's activations, so that no gradient enters the"
         " backbone.",
         "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning",
         "NeurIPS 2022", "2206.06522"),
        ("+ conv_adapter", "Conv-Adapter",
         "Adapt convolutional networks by a grouped and a pointwise convolution in a bottleneck.",
         "Conv-Adapter: Exploring Parameter Efficient Transfer Learning for ConvNets",
         "CVPR-W 2024", "2208.07463"),
        ("x mona", "Mona",
         "Put a bottleneck with convolutions of three sizes after the attention and after the MLP.",
         "5%>100%: Breaking Performance Shackles of Full Fine-Tuning on Visual Recognition Tasks",
         "CVPR 2025", "2408.08345"),
        ("+ repadapter", "RepAdapter",
         "Put a linear bottleneck before a frozen layer and fold it in after training.",
         "Towards Efficient Visual Adaption via Structural Re-parameterization", "arXiv 2023",
         "2302.08106"),
        ("x dtl", "DTL",
         "Gather low-rank changes on a side path, and give them back to the later blocks alone.",
         "DTL: Disentangled Transfer Learning for Visual Recognition", "AAAI 2024", "2312.07856"),
        ("+ polyhistor", "Polyhistor",
         "Generate the adapters of all layers and tasks by one decomposed hyper-network.",
         "Polyhistor: Parameter-Efficient Multi-Task Adaptation for Dense Vision Tasks",
         "NeurIPS 2022", "2210.03265"),
        ("~ residual_adapter_parallel", "EPM",
         "Compare series and parallel residual adapters, and where in the network they pay off.",
         "Efficient parametrization of multi-domain deep neural networks", "CVPR 2018",
         "1803.10082"),
        ("~ residual_adapter_series", "DAN",
         "Recombine the frozen filters of each layer linearly, by one matrix per layer and task.",
         "Incremental Learning Through Deep Adaptation", "TPAMI 2018", "1705.04228"),
        ("~ polyhistor", "AMixer",
         "Mix tokens by weights that are themselves mixed per input from a bank, without "
         "self-attention.",
         "AMixer: Adaptive Weight Mixing for Self-attention Free Vision Transformers", "ECCV 2022",
         ""),
        ("~ ssf", "FiT",
         "Scale and shift the features of a frozen network, with a naive Bayes classifier fitted "
         "on top.",
         "FiT: Parameter Efficient Few-shot Transfer Learning for Personalized and Federated "
         "Image Classification", "ICLR 2023", "2206.08671"),
        ("~ houlsby", "TINA",
         "Start with wide adapters and prune their neurons by a score that compares layers.",
         "Tiny Adapters for Vision Transformers", "OpenReview 2022", ""),
        ("~ residual_adapter_series", "BDTL",
         "Augment a pre-trained model with layers that lessen the shift to medical images.",
         "Boosting Deep Transfer Learning for COVID-19 Classification", "arXiv 2021", "2102.08085"),
        ("~ vit_adapter", "ViTDet",
         "Turn a plain ViT into a detector by a simple pyramid from its last map and mostly "
         "windowed attention.", "Exploring Plain Vision Transformer Backbones for Object Detection",
         "ECCV 2022", "2203.16527"),
        ("~ vl_adapter", "Florence",
         "Pre-train one vision-language model and attach an adapter per task: detection, video, "
         "questions.", "Florence: A New Foundation Model for Computer Vision", "arXiv 2021",
         "2111.11432"),
        ("~ houlsby", "SND", UNIDENTIFIED, "", "", ""),
    ),
    "adapter/parallel": (
        ("x residual_adapter_parallel", "Residual adapter (parallel)",
         "Add a 1x1 convolution beside every frozen convolution.",
         "Efficient parametrization of multi-domain deep neural networks", "CVPR 2018",
         "1803.10082"),
        ("+ adaptformer", "AdaptFormer", "Add a small bottleneck beside the MLP of every block.",
         "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition",
         "NeurIPS 2022", "2205.13535"),
        ("+ convpass", "Convpass",
         "Add a bottleneck with a 3x3 convolution over the patch grid beside attention and MLP.",
         "Convolutional Bypasses Are Better Vision Transformer Adapters", "arXiv 2022",
         "2207.07039"),
        ("+ vit_adapter", "ViT-Adapter",
         "Exchange features with a convolutional prior by deformable attention, for dense "
         "prediction.", "Vision Transformer Adapter for Dense Predictions", "ICLR 2023",
         "2205.08534"),
        ("+ st_adapter", "ST-Adapter",
         "Add a bottleneck with a depth-wise 3-D convolution, to read video with an image model.",
         "ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning", "NeurIPS 2022",
         "2206.13559"),
        ("+ aim", "AIM",
         "Reuse the frozen attention over time, with adapters for space, time and both.",
         "AIM: Adapting Image Models for Efficient Video Action Recognition", "ICLR 2023",
         "2302.03024"),
        ("+ clip_adapter", "CLIP-Adapter", "Blend CLIP's image feature with a bottleneck of it.",
         "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", "IJCV 2024",
         "2110.04544"),
        ("+ tip_adapter", "Tip-Adapter",
         "Add votes of the training images, kept as a cache of keys and labels, to zero-shot CLIP.",
         "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", "ECCV 2022",
         "2207.09519"),
        ("+ vl_adapter", "VL-Adapter",
         "Share adapters between several vision-language tasks of one language model.",
         "VL-Adapter: Parameter-Efficient Transfer Learning for Vision-and-Language Tasks",
         "CVPR 2022", "2112.06825"),
        ("~ kd", "PESF-KD",
         "Train an adapter on the teacher, so that its answers become easier to learn.",
         "Parameter-Efficient and Student-Friendly Knowledge Distillation", "TMM 2023",
         "2205.15308"),
        ("~ adaptformer", "PEA", UNIDENTIFIED, "", "", ""),
        ("~ adaptformer", "CAOA", UNIDENTIFIED, "", "", ""),
        ("~ adaptformer", "HA", UNIDENTIFIED, "", "", ""),
        ("~ clip_adapter", "BALLAD",
         "Go on pre-training CLIP on long-tailed data, then train a linear adapter on balanced "
         "samples.", "A Simple Long-Tailed Recognition Baseline via Vision-Language Model",
         "arXiv 2021", "2111.14745"),
        ("~ vl_adapter", "MAGMA",
         "Feed image features to a frozen language model as a prefix, with adapters in its blocks.",
         "MAGMA: Multimodal Augmentation of Generative Models through Adapter-based Finetuning",
         "EMNLP Findings 2022", "2112.05253"),
        ("~ vl_adapter", "Hierarchical3D",
         "Give a text summariser adapters with a hierarchy over the shots of a long video.",
         "Hierarchical3D Adapters for Long Video-to-text Summarization", "EACL Findings 2023",
         "2210.04829"),
        ("~ polyhistor", "HyperPELT",
         "Generate prefixes and adapters by one hyper-network from task, layer and image "
         "embeddings.",
         "HyperPELT: Unified Parameter-Efficient Language Model Tuning for Language and "
         "Vision-and-Language Tasks", "ACL Findings 2023", "2203.03878"),
        ("~ clip_adapter", "SVL-Adapter",
         "Blend CLIP with an adapter on a self-supervised encoder.",
         "SVL-Adapter: Self-Supervised Adapter for Vision-Language Pretrained Models", "BMVC 2022",
         "2210.03794"),
    ),
    "adapter/mix": (
        ("+ vqt", "VQT",
         "Let learned queries read every block's frozen features, and classify what they gathered.",
         "Visual Query Tuning", "CVPR 2023", "2212.03220"),
        ("+ consolidator", "Consolidator",
         "Add a grouped linear layer beside every linear layer and fold it in after training.",
         "Consolidator: Mergeable Adapter with Grouped Connections for Visual Adaptation",
         "ICLR 2023", "2305.00603"),
        ("+ ett", "ETT",
         "Learn attentive prefixes and offset vectors per block, for few-shot classes.",
         "Exploring Efficient Few-shot Adaptation for Vision Transformers", "TMLR 2022",
         "2301.02419"),
        ("x fpet", "FPET",
         "Merge half of the tokens half-way, by learned similarity, and tune with adapters.",
         "Faster Parameter-Efficient Tuning with Token Redundancy Reduction", "CVPR 2025",
         "2503.20282"),
        ("~ ett", "PATT",
         "Compute the prefix keys and values from the input by a bottleneck in parallel to the "
         "attention.", "Towards a Unified View on Visual Parameter-Efficient Transfer Learning",
         "arXiv 2022", "2210.00788"),
        ("~ ett", "PALT",
         "Add a learned prompt and a small calibration of the outputs to a frozen model, for "
         "knowledge graphs.",
         "PALT: Parameter-Lite Transfer of Language Models for Knowledge Graph Completion",
         "EMNLP Findings 2022", "2210.13715"),
        ("~ houlsby", "TVG",
         "Compare adapters in the language model that reads the query of temporal video grounding.",
         "Towards Parameter-Efficient Integration of Pre-Trained Language Models in Temporal "
         "Video Grounding", "ACL Findings 2023", "2209.13359"),
    ),
    "parameter/bias": (
        ("+ bitfit", "BitFit", "Train only the biases.",
         "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked "
         "Language-models", "ACL 2022", "2106.10199"),
        ("+ side_tuning", "Side-tuning",
         "Blend the frozen network's output with a small trainable network's.",
         "Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks", "ECCV 2020",
         "1912.13503"),
        ("+ adapterbias", "AdapterBias",
         "Shift the MLP's output by a learned vector, weighted per token.",
         "AdapterBias: Parameter-efficient Token-dependent Representation Shift for Adapters in "
         "NLP Tasks", "NAACL Findings 2022", "2205.00305"),
        ("+ dp_bitfit", "DP-BiTFiT",
         "Train only the biases, with clipped gradients per sample and noise for differential "
         "privacy.", "Differentially Private Bias-Term Fine-tuning of Foundation Models",
         "ICML 2024", "2210.00036"),
    ),
    "parameter/weight": (
        ("+ lora", "LoRA", "Learn the change of a weight matrix as a product of two thin ones.",
         "LoRA: Low-Rank Adaptation of Large Language Models", "ICLR 2022", "2106.09685"),
        ("+ dylora", "DyLoRA",
         "Train LoRA at random ranks, so that it can be cut to any rank afterwards.",
         "DyLoRA: Parameter-Efficient Tuning using Dynamic Search-Free Low Rank Adaptation",
         "EACL 2023", "2210.07558"),
        ("+ compacter", "Compacter",
         "Build adapter weights from Kronecker products with one shared and one low-rank factor.",
         "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", "NeurIPS 2021", "2106.04647"),
        ("+ phm_adapter", "PHM adapter",
         "Build adapter weights as sums of Kronecker products (hypercomplex multiplication).",
         "Beyond Fully-Connected Layers with Quaternions", "ICLR 2021", "2102.08597"),
        ("+ kadaptation", "KAdaptation",
         "Learn attention's change as sums of Kronecker products with factors shared by all "
         "layers.", "Parameter-Efficient Model Adaptation for Vision Transformers", "AAAI 2023",
         "2203.16329"),
        ("+ fact_tt", "FacT-TT",
         "See the changes of all layers as one tensor and learn its tensor-train factors.",
         "FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer", "AAAI 2023",
         "2212.03145"),
        ("+ fact_tk", "FacT-TK",
         "See the changes of all layers as one tensor and learn its Tucker factors.",
         "FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer", "AAAI 2023",
         "2212.03145"),
        ("+ krona", "KronA", "Learn the change of a weight matrix as one Kronecker product.",
         "KronA: Parameter Efficient Tuning with Kronecker Adapter", "NeurIPS-W 2023", "2212.10650"),
        ("+ dldr", "DLDR", "Train inside the few principal directions of an earlier training run.",
         "Low Dimensional Trajectory Hypothesis is True: DNNs Can Be Trained in Tiny Subspaces",
         "TPAMI 2022", "2103.11154"),
        ("+ mosa", "MoSA",
         "Learn a low-rank change of convolutions, in the modules that the shift concerns.",
         "Motion Style Transfer: Modular Low-Rank Adaptation for Deep Motion Forecasting",
         "CoRL 2022", "2211.03165"),
        ("+ aurora", "Aurora",
         "Learn the changes of all layers as one tensor in canonical polyadic form.",
         "Parameter-efficient Tuning of Large-scale Multimodal Foundation Model", "NeurIPS 2023",
         "2305.08381"),
        ("x dora", "DoRA", "Learn a weight's magnitude by itself and its direction by LoRA.",
         "DoRA: Weight-Decomposed Low-Rank Adaptation", "ICML 2024", "2402.09353"),
        ("x vera", "VeRA",
         "Share frozen random low-rank matrices between layers and learn only scaling vectors.",
         "VeRA: Vector-based Random Matrix Adaptation", "ICLR 2024", "2310.11454"),
        ("~ lora", "DnA",
         "Split weights into a frozen low-rank part and a sparse part, and align the sparse one "
         "to the target.",
         "DnA: Improving Few-Shot Transfer Learning with Low-Rank Decomposition and Alignment",
         "ECCV 2022", ""),
        ("~ phm_adapter", "PHNNs", "Build convolutions as sums of Kronecker products.",
         "PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions",
         "TNNLS 2022", "2110.04176"),
        ("~ lora", "TARP", UNIDENTIFIED, "", "", ""),
    ),
    "parameter/both": (
        ("+ ssf", "SSF", "Scale and shift the output of every layer.",
         "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
         "NeurIPS 2022", "2210.08823"),
        ("x gps", "GPS", "Train the few weights of every neuron that have the largest gradients.",
         "Gradient-based Parameter Selection for Efficient Fine-Tuning", "CVPR 2024", "2312.10136"),
        ("x spt", "SPT",
         "Spend the budget on the most sensitive weights, by single entries or by LoRA where they"
         " crowd.", "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning", "ICCV 2023",
         "2303.08566"),
    ),
    "remapping/distillation": (
        ("+ kd", "KD", "Match the teacher's softened class probabilities.",
         "Distilling the Knowledge in a Neural Network", "NeurIPS-W 2014", "1503.02531"),
        ("+ fitnet", "FitNet",
         "Match a middle feature map of the teacher through a learned regressor.",
         "FitNets: Hints for Thin Deep Nets", "ICLR 2015", "1412.6550"),
        ("x attention_transfer", "Attention transfer", "Match where the feature maps are strong.",
         "Paying More Attention to Attention", "ICLR 2017", "1612.03928"),
        ("+ activation_boundaries", "Activation boundaries",
         "Match which neurons fire, by a hinge on the activations before the ReLU.",
         "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
         "AAAI 2019", "1811.03233"),
        ("+ normalized_kd", "Normalised KD",
         "Distil with a temperature per sample, the norm of its feature.",
         "Feature Normalized Knowledge Distillation for Image Classification", "ECCV 2020", ""),
        ("+ dfa", "DFA",
         "Search by gradients how the teacher's layers are to be mixed into one target.",
         "Differentiable Feature Aggregation Search for Knowledge Distillation", "ECCV 2020",
         "2008.00506"),
        ("x dkd", "DKD",
         "Weight what the teacher says of the true class apart from what it says of the others.",
         "Decoupled Knowledge Distillation", "CVPR 2022", "2203.08679"),
        ("x rkd", "RKD", "Match distances and angles between the embeddings of a batch.",
         "Relational Knowledge Distillation", "CVPR 2019", "1904.05068"),
        ("~ kd", "Student", UNIDENTIFIED, "", "", ""),
        ("~ fitnet", "AdaIN",
         "Match channel means and deviations, and check them by re-styling the teacher's features.",
         "Knowledge Distillation via Adaptive Instance Normalization", "arXiv 2020", "2003.04289"),
    ),
    "remapping/weight": (
        ("+ net2wider", "Net2Wider",
         "Widen a layer by copying units and dividing their outgoing weights.",
         "Net2Net: Accelerating Learning via Knowledge Transfer", "ICLR 2016", "1511.05641"),
        ("+ net2deeper", "Net2Deeper", "Insert a layer that starts as the identity.",
         "Net2Net: Accelerating Learning via Knowledge Transfer", "ICLR 2016", "1511.05641"),
        ("x block_expansion", "Block expansion",
         "Insert blocks that add nothing at first, and train them alone.",
         "Parameter Efficient Fine-tuning of Self-supervised ViTs without Catastrophic Forgetting",
         "CVPR-W 2024", "2404.17245"),
        ("+ eas", "EAS",
         "Let a reinforced controller choose Net2Net steps, so that each candidate starts trained.",
         "Efficient Architecture Search by Network Transformation", "AAAI 2018", "1707.04873"),
        ("+ n2n", "N2N",
         "Let a reinforced controller remove and shrink a teacher's layers, with a reward for "
         "small and right.",
         "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning",
         "ICLR 2018", "1709.06030"),
        ("+ nash", "NASH",
         "Climb hills: train several function-preserving mutations briefly and keep the best.",
         "Simple and Efficient Architecture Search for Convolutional Neural Networks",
         "ICLR-W 2018", "1711.04528"),
        ("+ path_level_eas", "Path-level EAS",
         "Replace a layer by branches that together compute the same, and search over them.",
         "Path-Level Network Transformation for Efficient Architecture Search", "ICML 2018",
         "1806.02639"),
    ),
    "remapping/architecture": (
        ("+ darts", "DARTS",
         "Mix all candidate operations by a softmax, and learn its logits on validation data.",
         "DARTS: Differentiable Architecture Search", "ICLR 2019", "1806.09055"),
        ("+ snas", "SNAS",
         "Sample operations by Gumbel-softmax, and learn logits and weights from one loss.",
         "SNAS: Stochastic Neural Architecture Search", "ICLR 2019", "1812.09926"),
        ("+ p_darts", "P-DARTS",
         "Deepen the supernet in stages while dropping the weakest operations.",
         "Progressive Differentiable Architecture Search", "ICCV 2019", "1904.12760"),
        ("+ darts_plus", "DARTS+", "Stop the search when skip connections begin to win.",
         "DARTS+: Improved Differentiable Architecture Search with Early Stopping", "arXiv 2019",
         "1909.06035"),
        ("+ sgas", "SGAS", "Decide the edges one by one, the surest and most important first.",
         "SGAS: Sequential Greedy Architecture Search", "CVPR 2020", "1912.00195"),
        ("+ milenas", "MiLeNAS", "Learn the logits from training and validation loss together.",
         "MiLeNAS: Efficient Neural Architecture Search via Mixed-Level Reformulation", "CVPR 2020",
         "2003.12238"),
        ("+ darts_minus", "DARTS-",
         "Add an auxiliary skip that fades away, so that skips win only on merit.",
         "DARTS-: Robustly Stepping out of Performance Collapse Without Indicators", "ICLR 2021",
         "2009.01027"),
        ("+ data", "DATA",
         "Draw several Gumbel samples per edge, so that more than one operation may stay.",
         "DATA: Differentiable ArchiTecture Approximation", "NeurIPS 2019", ""),
        ("~ data", "DATA-GS",
         "Constrain the architecture distribution besides, to lessen the variance of sampling.",
         "DATA: Differentiable ArchiTecture Approximation With Distribution Guided Sampling",
         "TPAMI 2021", ""),
    ),
}  # fmt: skip


def _build() -> tuple[System, ...]:
    rows = [
        (leaf, *mark.split(), *rest) for leaf, entries in _TABLE.items() for mark, *rest in entries
    ]
    keys = {file: f"{leaf}/{file}" for leaf, mark, file, *_ in rows if mark != "~"}
    systems = []
    for leaf, mark, file, name, idea, paper, venue_year, arxiv in rows:
        venue, _, year = venue_year.rpartition(" ")
        own, nearest = (None, keys[file]) if mark == "~" else (keys[file], None)
        systems.append(
            System(
                name,
                leaf,
                idea,
                paper,
                venue,
                int(year) if year else None,
                arxiv or None,
                own,
                nearest,
                extra=mark == "x",
            )
        )
    return tuple(systems)


SYSTEMS = _build()

# Section 2: kind of backbone -> (the survey's systems, what is written here from scratch)
BACKBONES = {
    "CNN": (
        "VGGNet, Inception, ResNet, EfficientNet, C3D, I3D, S3D, X3D",
        "ResNet with torchvision's names",
    ),
    "Transformer": (
        "ViT, DeiT, TNT, T2T, PVT, Swin, Video Swin, CPVT",
        "ViT and Swin with timm's names, DeiT's distillation token",
    ),
    "hybrid": ("Shuffle, CMT, VOLO", "ViT with a convolutional stem"),
    "two-tower": ("CLIP", "CLIP, with our ViT as its image tower"),
}

# Section 4: direction -> what it asks
DIRECTIONS = {
    "Prospective pre-training": (
        "data that is synthetic or made by formulas, and models and optimisers meant to be tuned"
        " later"
    ),
    "Interpretable and controllable prompts": (
        "what a learned prompt means: its nearest words, and where its token attends"
    ),
    "Diversified interactions": (
        "points, boxes, sketches and language as ways to say what is wanted"
    ),
    "Tuning for edge devices": (
        "memory, latency, and swapping small deltas over one shared backbone"
    ),
}


def systems(part: str | None = None) -> tuple[System, ...]:
    """All systems in order, or those of a group ("adapter") or leaf ("adapter/parallel"). Raises
    `VTError` for another name."""
    if part is None:
        return SYSTEMS
    parts = {group.path for group in GROUPS} | {leaf.path for leaf in LEAVES}
    if part not in parts:
        raise unknown("group", part, parts)
    return tuple(system for system in SYSTEMS if f"{system.leaf}/".startswith(f"{part}/"))


def find_system(name: str) -> System:
    """A system by its key, the last part of its key, or its name, in any case. Raises `VTError`
    with the nearest names."""
    for system in SYSTEMS:  # keys first: a name to type beats a row that happens to be called alike
        if system.key and name in (system.key, system.short):
            return system
    for system in SYSTEMS:
        if name.casefold() in (system.name.casefold(), system.short.casefold()):
            return system
    raise unknown("method", name, {system.short for system in SYSTEMS})


def status(system: System) -> str:
    """ "implemented", "planned" (it has a key, but no file yet) or "row" (it is described, not
    implemented)."""
    if system.key is None:
        return "row"
    return "implemented" if system.key in METHODS else "planned"


def nearest_implemented(system: System) -> str | None:
    """The key of the implemented method to look at: the system itself, its nearest, or the first of
    its leaf or group; None without any."""
    neighbours = [s.key for part in (system.leaf, system.leaf.split("/")[0]) for s in systems(part)]
    return next((key for key in (system.key, system.nearest, *neighbours) if key in METHODS), None)
