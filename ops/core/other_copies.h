// Other copies of this library in the process.
#pragma once

namespace onnxnorm {

/// Throws if a copy of another version was registered in this process before, from another file.
/// Their ops have the same names, so the two cannot serve one session, and which of them computes
/// would be a matter of the order in which sessions are made. Copies of the same version may be
/// there side by side.
///
/// Copies are found among the loaded shared objects, on Linux (glibc and musl), macOS and Windows;
/// elsewhere none is found. Those in another namespace of dlmopen() are not seen.
void RefuseOtherVersions();

/// Whether this copy was registered with a runtime.
bool IsRegistered();
/// From now on it is, and stays loaded for as long as the process lives: a runtime closes it with
/// the last session that uses it, which would each time leave behind what is never freed because
/// sessions point to it.
void MarkRegistered();

}  // namespace onnxnorm
