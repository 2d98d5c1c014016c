"""One file for each command: its words, what it calls, what it prints. Nothing imports a command but cli."""

# name -> what it does, for kdrun --help
COMMANDS = {
    "train": "train a student (and, where it is missing, its teacher): kdrun train method=dkd teacher=vgg16",
    "eval": "measure a finished run or a checkpoint: kdrun eval RUN",
    "predict": "what a trained network makes of images in a folder: kdrun predict RUN path=FOLDER",
    "export": "write ONNX, quantise it, and check both against the network: kdrun export RUN quantize=static",
    "table": "what a sweep or any runs came to, beside published values: kdrun table NAME",
    "report": "the same as one HTML file, with curves, costs and every run: kdrun report NAME",
    "bias": "what students took over beside accuracy, on derived test sets: kdrun bias NAME",
    "compare": "what differs between runs, in settings and in figures: kdrun compare RUN RUN",
    "diagnose": "why distillation does not help in a run, and what to try next: kdrun diagnose RUN",
    "tune": "better weights and temperature, chosen on validation images: kdrun tune method=kd",
    "gradcam": "where teacher and students look, as one picture: kdrun gradcam RUN …",
    "status": "how far sweeps are: done, running, failed, time left",
    "where": "the directory of a run or its teacher, for scripts: kdrun where run method=dkd",
    "testset": "make a derived copy of the test images (noise, scramble, silhouette …) and look at it",
    "data": "what is in a folder of images, and which of them are damaged: kdrun data FOLDER",
    "list": "what there is: methods, teachers, students, datasets, benchmarks, pairs, runs …",
    "runs": "tag, annotate or remove runs: kdrun runs tag RUN tag=baseline",
    "clean": "what can be removed from the output folder, with sizes; asks first",
    "check": "the properties that a method must have, tried on yours: kdrun check method=mine",
    "explain": "what a setting means, or a method's paper and equation: kdrun explain optimizer.lr",
    "taps": "the feature shapes of a pair, and which stages belong together: kdrun taps teacher=… student=…",
    "bench": "measure this machine: the engine against a plain PyTorch loop",
    "doctor": "check the installation and say what `auto` resolves to here",
    "completion": "make Tab complete all of this in your shell: kdrun completion bash",
}
