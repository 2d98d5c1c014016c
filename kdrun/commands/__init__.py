"""Commands, one per file: arguments, work, output. Only cli imports a command."""

# name -> description, for kdrun --help
COMMANDS = {
    "train": "train a student (and its teacher, if needed): kdrun train method=dkd teacher=vgg16",
    "eval": "measure a finished run or a checkpoint: kdrun eval RUN",
    "predict": "classify the images in a folder with a trained network: kdrun predict RUN path=FOLDER",
    "export": "export to ONNX, quantise, and check both against the network: kdrun export RUN quantize=static",
    "table": "results of a sweep or of any runs, next to published values: kdrun table NAME",
    "report": "results as one HTML file, with curves, costs and all runs: kdrun report NAME",
    "bias": "biases that students inherit besides accuracy, on derived test sets: kdrun bias NAME",
    "compare": "differences between runs, in settings and in results: kdrun compare RUN RUN",
    "diagnose": "why distillation does not help in a run, and what to try next: kdrun diagnose RUN",
    "tune": "search better weights and temperature on validation images: kdrun tune method=kd",
    "gradcam": "where teacher and students look (Grad-CAM), as one picture: kdrun gradcam RUN …",
    "status": "progress of sweeps: done, running, failed, time left",
    "where": "print the directory of a run or its teacher, for scripts: kdrun where run method=dkd",
    "testset": "create and show a derived copy of the test images (noise, scramble, silhouette …)",
    "data": "inspect a folder of images, and find damaged ones: kdrun data FOLDER",
    "list": "list methods, teachers, students, datasets, benchmarks, pairs, runs …",
    "runs": "tag, annotate or remove runs: kdrun runs tag RUN tag=baseline",
    "clean": "show what can be removed from the output folder, and remove it after asking",
    "check": "test your own method for the properties that every method must have: kdrun check method=mine",
    "explain": "explain a setting, or a method's paper and equation: kdrun explain optimizer.lr",
    "taps": "show the feature shapes of a pair, and which stages are paired: kdrun taps teacher=… student=…",
    "bench": "measure the speed of this machine: kdrun against a plain PyTorch loop",
    "doctor": "check the installation, and show what `auto` means on this machine",
    "completion": "set up Tab completion for your shell: kdrun completion bash",
}
